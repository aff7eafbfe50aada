"""The page of digits: its model, and digits that are drawn on it."""

import math
import shutil
from pathlib import Path

import pytest
from chromium import WIDTHS, resize
from timm.data import create_transform

from timm_mobilevit._images import read_image

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "build" / "web" / "node_modules" / "onnxruntime-web" / "dist"  # `make test-web` installs it


def arc(x, y, width, height, begin, end, steps=24):
    """Points of an ellipse, clockwise from `begin` to `end` in degrees; 0 is on the right, 90 at the bottom."""
    angles = [math.radians(begin + (end - begin) * step / steps) for step in range(steps + 1)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


# Strokes in a square of 100, as people write.
DRAWINGS = {
    "0": [arc(50, 50, 25, 38, -90, 270)],
    "1": [[(38, 28), (54, 12), (54, 88)]],
    "2": [[*arc(50, 34, 22, 22, -170, 45), (28, 88), (76, 88)]],
    "3": [[*arc(48, 31, 20, 19, -150, 90), *arc(48, 68, 23, 20, -90, 150)]],
    "4": [[(55, 12), (25, 60), (78, 60)], [(60, 40), (60, 90)]],
    "5": [[(72, 14), (36, 14), (33, 45), *arc(48, 63, 24, 24, -120, 140)]],
    "6": [[(62, 12), (42, 35), *arc(50, 66, 20, 22, 190, 545)]],
    "7": [[(27, 14), (74, 14), (44, 88)]],
    "8": [[*arc(50, 31, 17, 18, 90, 450), *arc(50, 69, 21, 20, -90, 270)]],
    "9": [[*arc(50, 34, 20, 21, 0, -360), (68, 60), (60, 88)]],
}


def test_model_knows_the_digits(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("sklearn", reason="needs the extra demo")
    from benchmarks.digits_data import write_digits

    session = onnxruntime.InferenceSession(ROOT / "docs" / "digits" / "onnx" / "model_quantized.onnx")
    transform = create_transform((3, 64, 64), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0)
    scans = sorted(write_digits(tmp_path / "digits").glob("val/*/*.png"))
    images = [read_image(path, "RGB", transform).numpy()[None] for path in scans]
    found = [session.run(["logits"], {"pixel_values": image})[0].argmax() for image in images]
    right = sum(index == int(path.parent.name) for index, path in zip(found, scans, strict=True))
    assert len(scans) == 360
    assert right >= 354


@pytest.fixture
def page(site, browser):
    """Loads the page, and its model in a runtime that the site itself has."""
    folder, address = site
    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not in build/web: run `make test-web`")
    if not (folder / "runtime").exists():
        shutil.copytree(RUNTIME, folder / "runtime", ignore=shutil.ignore_patterns("*.map"))

    def load(width):
        resize(browser, width)
        browser.get(f"{address}/digits.html")
        browser.execute_script("document.getElementById('digits').dataset.runtime = 'runtime/'")
        browser.find_element("css selector", "#digits button").click()
        wait(browser, lambda: browser.find_element("css selector", "#digits canvas").is_displayed() or status(browser))
        assert status(browser) == ""
        return browser

    return load


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: condition())


def status(browser):
    return browser.find_element("css selector", "#digits [role=status]").text.replace("Loading…", "")


def draw(browser, strokes):
    box = browser.execute_script(
        "const box = document.querySelector('#digits canvas'); box.scrollIntoView({ block: 'center' });"
        "return box.getBoundingClientRect().toJSON()"
    )
    for stroke in strokes:
        points = [(box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100) for x, y in stroke]
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1)]
        for kind, (x, y) in zip(kinds, points, strict=True):
            event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        x, y = points[-1]
        event = {"type": "mouseReleased", "x": x, "y": y, "button": "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    browser.execute_async_script("setTimeout(arguments[0], 300)")  # the answer to the last point
    return [row.text for row in browser.find_elements("css selector", "#digits li")]


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_drawn_digits_are_named(page, width):
    browser = page(width)
    named = {}
    for digit, strokes in DRAWINGS.items():
        rows = draw(browser, strokes)
        assert len(rows) == 3
        named[digit] = rows[0]
        assert status(browser).endswith(" ms per image in WebAssembly on this device")
        browser.find_elements("css selector", "#digits button")[1].click()
        assert browser.find_elements("css selector", "#digits li") == []
    wrong = {digit: row for digit, row in named.items() if row[0] != digit}
    assert not wrong
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
