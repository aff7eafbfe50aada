"""Headless Chromium, and a server of static files: for the tests of pages."""

import functools
import http.server
import shutil
import threading
from contextlib import contextmanager

import pytest

WIDTHS = (1280, 390)  # of a desktop and of a phone


@contextmanager
def serve(folder):
    """The address of a folder; pages of other addresses may read it, as those of content delivery networks."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def end_headers(self):
            self.send_header("Access-Control-Allow-Origin", "*")
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def chromium(profile, *arguments):
    """A browser that keeps what it needs in the folder `profile`; its log has everything that pages write."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'timm-mobilevit[docs]'")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("chromium and chromedriver are not on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless",
        "--no-sandbox",  # for containers, where everything runs as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={profile}",
        *arguments,
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def resize(browser, width):
    """Give the page a width. Windows cannot be as narrow as a phone, so its screen is emulated."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
