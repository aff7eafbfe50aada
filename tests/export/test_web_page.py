"""The folder of `timm-mobilevit export web` where it is used: the page in Chromium, transformers.js in Node."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
from chromium import WIDTHS, chromium, resize, serve
from export_models import shallow
from kinds import KINDS
from PIL import Image, PngImagePlugin
from timm.data import create_transform, resolve_data_config

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("sklearn", reason="needs the extra demo")
from sklearn.datasets import load_sample_image  # noqa: E402

from benchmarks import digits  # noqa: E402
from benchmarks.digits_data import write_digits  # noqa: E402
from timm_mobilevit._images import read_image  # noqa: E402
from timm_mobilevit.export.web import export_web  # noqa: E402

pytestmark = pytest.mark.browser

PACKAGES = Path(__file__).parents[2] / "build" / "web" / "node_modules"  # `make test-web` installs them
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)

CLASSIFY = """
import { env, pipeline } from "@huggingface/transformers";
const [folder, dtype, ...images] = process.argv.slice(1);
Object.assign(env, { allowRemoteModels: false, localModelPath: folder });
const classify = await pipeline("image-classification", "site", dtype ? { dtype } : {});
console.log(JSON.stringify(await classify(images)));
"""

PROCESS = """
import { AutoProcessor, RawImage, env } from "@huggingface/transformers";
const [folder, image] = process.argv.slice(1);
Object.assign(env, { allowRemoteModels: false, localModelPath: folder });
const process_ = await AutoProcessor.from_pretrained("site");
const { pixel_values } = await process_(await RawImage.read(image));
console.log(JSON.stringify(Array.from(pixel_values.data)));
"""

TO_PIXELS = """
const [address, preprocessor, done] = arguments;
(async () => {
  const { readPicture, toPixels } = await import("./classify.js");
  const picture = await readPicture(await (await fetch(address)).blob());
  return Array.from(toPixels(picture, preprocessor));
})().then(done, (error) => done(error.stack));
"""

DROP = """
const [address, done] = arguments;
(async () => {
  const files = new DataTransfer();
  files.items.add(new File([await (await fetch(address)).blob()], "scan.png"));
  dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
})().then(done, (error) => done(error.stack));
"""

# A GPU that Chromium imitates, presented as a real one: the page would leave it aside.
IMITATED_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
AS_A_REAL_ONE = "Object.defineProperty(GPUAdapterInfo.prototype, 'isFallbackAdapter', { value: false });"
BROKEN_GPU = """
GPU.prototype.requestAdapter = async () => ({
  features: new Set(), info: {}, limits: {}, requestDevice: async () => { throw new Error("lost"); },
});
"""


@pytest.fixture(scope="module")
def runtime():
    if not (PACKAGES / "onnxruntime-web" / "dist").is_dir():
        pytest.skip("onnxruntime-web is not in build/web: run `make test-web`")
    return PACKAGES / "onnxruntime-web" / "dist"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def model(tmp_path_factory, scans):
    """Trained on the digits, not for long."""
    folder = tmp_path_factory.mktemp("model")
    options = {"epochs": 4, "img_size": 64, "lr": 4e-3, "batch_size": 64, "seed": 0, "pretrained": False}
    with pytest.raises(typer.Exit) as end:
        digits.main(KINDS[-1], data=scans, output=folder, min_accuracy=0.8, **options)
    assert end.value.exit_code == 0
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.fixture(scope="module")
def site(tmp_path_factory, model, runtime):
    folder = tmp_path_factory.mktemp("web") / "site"
    export_web(model, folder, runtime=runtime)
    return folder


@pytest.fixture(scope="module")
def int8_site(tmp_path_factory, model, scans, runtime):
    folder = tmp_path_factory.mktemp("web") / "site"
    export_web(model, folder, runtime=runtime, calibration=scans / "train")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile"), "--host-resolver-rules=MAP computer 127.0.0.1") as browser:
        yield browser


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_image("china.jpg"))


def text(browser, name):
    return browser.find_element("id", name).text


def wait(browser, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: condition())


def load(browser, address):
    """Open the page, and wait until it takes pictures or says why not."""
    browser.get(address)
    wait(browser, lambda: browser.find_element("id", "choose").is_enabled() or wrong(browser))


def wrong(browser):
    return browser.find_element("id", "message").get_attribute("class") == "wrong" and text(browser, "message")


def errors(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def answer(browser, give):
    """Classes and percentages that the page shows after something was done."""
    browser.execute_script("document.getElementById('best').replaceChildren()")
    give()
    rows = wait(browser, lambda: wrong(browser) or browser.find_elements("css selector", "#best li"))
    assert not isinstance(rows, str), rows
    return [tuple(span.text for span in row.find_elements("tag name", "span")) for row in rows]


def of_file(browser, path):
    return answer(browser, lambda: browser.find_element("id", "files").send_keys(str(path)))


@torch.inference_mode()
def in_pytorch(model, path):
    transform = create_transform(**resolve_data_config({}, model=model))
    probabilities = model(read_image(path, "RGB", transform)[None]).softmax(dim=1)[0]
    scores, classes = probabilities.topk(5)
    return [
        (str(index), f"{100 * score:.1f} %") for score, index in zip(scores.tolist(), classes.tolist(), strict=True)
    ]


def assert_as_in_pytorch(actual, expected):
    assert [label for label, _ in actual] == [label for label, _ in expected]
    for (_, mine), (_, theirs) in zip(actual, expected, strict=True):
        assert float(mine.removesuffix(" %")) == pytest.approx(float(theirs.removesuffix(" %")), abs=0.11)


def test_scans_are_classified_as_in_pytorch(site, browser, model, scans):
    files = sorted(scans.glob("val/*/*.png"))[::30]
    with serve(site) as address:
        load(browser, f"{address}/index.html")
        assert text(browser, "about") == f"{KINDS[-1]}, 10 classes. Pictures stay on this device."
        assert text(browser, "message") == ""
        right = 0
        for file in files:
            shown = of_file(browser, file)
            assert_as_in_pytorch(shown, in_pytorch(model, file))
            right += shown[0][0] == file.parent.name
        assert right >= 9
        number, unit = text(browser, "time").split(" ", 1)
        assert 0 < float(number) < 1000
        assert unit.startswith("ms per image in WebAssembly on this device; ")
    assert len(files) == 12
    assert errors(browser) == []


def test_pixels_are_those_of_timm(site, browser, photo, tmp_path):
    exif, linear = Image.Exif(), PngImagePlugin.PngInfo()
    exif[274] = 6  # lies on its side
    linear.add(b"gAMA", (100_000).to_bytes(4, "big"))  # brighter where colours are converted
    clear = photo.convert("RGBA")
    clear.paste((0, 0, 0, 0), (200, 300, 500, 427))
    pictures = {
        "clear.png": (clear, {}),
        "large.png": (photo.resize((1501, 1000)), {}),
        "small.png": (photo.resize((45, 30)), {}),
        "even.png": (photo.resize((333, 222)), {}),
        "turned.jpg": (photo, {"exif": exif}),
        "grey.png": (photo.convert("L"), {}),
        "palette.png": (photo.quantize(), {}),
        "linear.png": (photo, {"pnginfo": linear}),
    }
    sizes = {"center": ((3, 128, 128), {"shortest_edge": 144}), "squash": ((3, 128, 96), {"height": 144, "width": 108})}
    with serve(site) as address:
        browser.get(f"{address}/index.html")
        for index, (name, (picture, options)) in enumerate(pictures.items()):
            picture.save(tmp_path / name, **options)
            data = base64.b64encode((tmp_path / name).read_bytes()).decode()
            for crop_mode, ((_, height, width), size) in sizes.items():
                interpolation = ("bilinear", "bicubic", "lanczos")[index % 3]
                transform = create_transform(
                    (3, height, width),
                    interpolation=interpolation,
                    mean=MEAN,
                    std=STD,
                    crop_pct=0.888,
                    crop_mode=crop_mode,
                )
                expected = read_image(tmp_path / name, "RGB", transform)
                preprocessor = {
                    "size": size,
                    "crop_size": {"height": height, "width": width},
                    "interpolation": interpolation,
                    "rescale_factor": 1 / 255,
                    "image_mean": MEAN,
                    "image_std": STD,
                }
                found = browser.execute_async_script(TO_PIXELS, f"data:image/any;base64,{data}", preprocessor)
                assert not isinstance(found, str), found
                levels = (torch.tensor(found).view(3, height, width) - expected) * torch.tensor(STD).view(3, 1, 1) * 255
                assert levels.abs().max() < 1.01, name  # of 255: sums on the border of two levels
                assert (levels.abs() > 0.01).float().mean() < 0.01, name


def test_eight_bits_in_webassembly(int8_site, browser, scans):
    files = sorted(scans.glob("val/*/*.png"))[::30]
    with serve(int8_site) as address:
        load(browser, f"{address}/index.html")
        right = sum(of_file(browser, file)[0][0] == file.parent.name for file in files)
        script = "return performance.getEntriesByType('resource').map(entry => entry.name.split('/').pop())"
        loaded = browser.execute_script(script)
    assert right >= 9
    assert "model_quantized.onnx" in loaded
    assert "model.onnx" not in loaded
    assert errors(browser) == []


def test_webgpu(int8_site, model, scans, tmp_path):
    with serve(int8_site) as address, chromium(tmp_path, *IMITATED_GPU) as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": AS_A_REAL_ONE})
        browser.get(f"{address}/index.html")
        script = "navigator.gpu.requestAdapter().then(adapter => arguments[0](Boolean(adapter)))"
        if not browser.execute_async_script(script):
            pytest.skip("Chromium has no WebGPU here")
        load(browser, f"{address}/index.html")
        file = next(scans.glob("val/7/*.png"))
        assert_as_in_pytorch(of_file(browser, file), in_pytorch(model, file))
        assert " ms per image in WebGPU on this device" in text(browser, "time")
        assert errors(browser) == []


def test_gpu_that_fails(site, model, scans, tmp_path):
    with serve(site) as address, chromium(tmp_path) as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": BROKEN_GPU})
        load(browser, f"{address}/index.html")
        file = next(scans.glob("val/7/*.png"))
        assert_as_in_pytorch(of_file(browser, file), in_pytorch(model, file))
        assert " ms per image in WebAssembly on this device" in text(browser, "time")


def test_numbers_that_are_not_finite(site, browser, tmp_path):
    import onnx

    shutil.copytree(site, tmp_path / "site")
    path = tmp_path / "site" / "onnx" / "model.onnx"
    broken = onnx.load(path)
    (bias,) = (tensor for tensor in broken.graph.initializer if list(tensor.dims) == [10])
    bias.raw_data = np.full(10, np.nan, np.float32).tobytes()
    onnx.save(broken, path)
    with serve(tmp_path / "site") as address:
        load(browser, f"{address}/index.html")
        assert wrong(browser) == "the model gives numbers that are not finite on wasm"


def test_dropped_picture_and_one_that_is_none(site, browser, model, scans, tmp_path):
    file = next(scans.glob("val/3/*.png"))
    (tmp_path / "notes.png").write_text("not a picture")
    with serve(site) as address:
        load(browser, f"{address}/index.html")
        data = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        shown = answer(browser, lambda: browser.execute_async_script(DROP, data))
        assert_as_in_pytorch(shown, in_pytorch(model, file))
        browser.find_element("id", "files").send_keys(str(tmp_path / "notes.png"))
        assert wait(browser, lambda: wrong(browser)) == "This browser cannot read notes.png as a picture."
        assert_as_in_pytorch(of_file(browser, file), in_pytorch(model, file))


def write_video(path, picture):
    """A picture as a camera gives it: yuv420, in a file of one frame that Chromium repeats."""
    width, height = picture.size
    planes = [np.asarray(plane) for plane in picture.convert("YCbCr").split()]
    luma = np.rint(16 + planes[0] * (219 / 255)).astype(np.uint8)
    chroma = [np.rint(128 + (plane[::2, ::2] - 128.0) * (224 / 255)).astype(np.uint8) for plane in planes[1:]]
    header = f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\nFRAME\n"
    path.write_bytes(header.encode() + b"".join(plane.tobytes() for plane in (luma, *chroma)))


def test_camera(site, model, scans, tmp_path):
    file = next(scans.glob("val/6/*.png"))
    scan = Image.open(file).convert("RGB")
    view = Image.new("RGB", (640, 480))
    view.paste(scan.resize((480, 480), Image.Resampling.BICUBIC), (80, 0))
    write_video(tmp_path / "scan.y4m", view)
    view.save(tmp_path / "view.png")
    arguments = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={tmp_path / 'scan.y4m'}",
    )
    with serve(site) as address, chromium(tmp_path / "profile", *arguments) as browser:
        load(browser, f"{address}/index.html")
        camera = browser.find_element("id", "camera")
        camera.click()
        wait(browser, lambda: camera.text == "Take the picture")
        wait(browser, lambda: browser.execute_script("return document.querySelector('video').currentTime > 0.5"))
        assert browser.find_element("css selector", "video").is_displayed()
        shown = answer(browser, camera.click)
        expected = in_pytorch(model, tmp_path / "view.png")
        assert shown[0][0] == expected[0][0] == "6"
        assert float(shown[0][1][:-2]) == pytest.approx(float(expected[0][1][:-2]), abs=5)
        assert camera.text == "Use the camera"
        assert not browser.find_element("css selector", "video").is_displayed()
        assert browser.find_element("css selector", "canvas").is_displayed()
        assert errors(browser) == []


def test_no_camera(site, browser):
    with serve(site) as address:
        load(browser, f"{address}/index.html")
        browser.find_element("id", "camera").click()
        assert wait(browser, lambda: wrong(browser)) == "This device has no camera."


def test_plain_http_from_another_machine(site, browser, model, scans):
    """As on a phone that asks a computer in its network: the page gets no stream, no worker and no GPU."""
    file = next(scans.glob("val/2/*.png"))
    with serve(site) as address:
        load(browser, f"{address.replace('127.0.0.1', 'computer')}/index.html")
        assert browser.execute_script("return isSecureContext") is False
        shown = answer(browser, lambda: browser.find_element("id", "shots").send_keys(str(file)))
        assert_as_in_pytorch(shown, in_pytorch(model, file))
        browser.find_element("id", "camera").click()
        assert wait(browser, lambda: text(browser, "message")).startswith("Over http, the camera opens on phones only")
        assert errors(browser) == []


def test_opens_again_without_the_server(site, model, scans, tmp_path):
    file = next(scans.glob("val/5/*.png"))
    with chromium(tmp_path) as browser:
        with serve(site) as address:
            load(browser, f"{address}/")
        browser.get("about:blank")
        load(browser, f"{address}/")
        assert_as_in_pytorch(of_file(browser, file), in_pytorch(model, file))


def test_runtime_from_elsewhere(site, model, scans, runtime, tmp_path):
    """As from a content delivery network. That is kept, too."""
    shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("runtime"))
    page = tmp_path / "site" / "index.html"
    file = next(scans.glob("val/4/*.png"))
    with chromium(tmp_path / "profile") as browser:
        with serve(tmp_path / "site") as address, serve(runtime) as elsewhere:
            page.write_text(page.read_text().replace('"runtime/"', f'"{elsewhere}/"'))
            load(browser, f"{address}/")
            assert_as_in_pytorch(of_file(browser, file), in_pytorch(model, file))
            assert errors(browser) == []
        load(browser, f"{address}/")
        assert_as_in_pytorch(of_file(browser, file), in_pytorch(model, file))


@pytest.mark.parametrize("host", ["127.0.0.1", "computer"])  # with and without a worker
def test_newer_model_is_taken(site, browser, host, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    with serve(tmp_path / "site") as address:
        address = address.replace("127.0.0.1", host)
        load(browser, f"{address}/index.html")
        config = json.loads((site / "config.json").read_text())
        newer = tmp_path / "site" / "config.json"
        newer.write_text(json.dumps({**config, "architecture": "newer"}))
        os.utime(newer, (time.time() + 60,) * 2)  # servers tell changes by the second
        load(browser, f"{address}/index.html")
        assert text(browser, "about").startswith("newer, ")


@pytest.mark.parametrize(
    ("script", "missing", "message"),
    [
        ("delete globalThis.WebAssembly;", "", "This browser has no WebAssembly, which the model needs."),
        ("", "onnx/model.onnx", "./onnx/model.onnx cannot be loaded (404 File not found)"),
        ("", "config.json", "./config.json cannot be loaded (404 File not found)"),
    ],
)
def test_what_is_missing_is_said(site, tmp_path, script, missing, message):
    shutil.copytree(site, tmp_path / "site")
    if missing:
        (tmp_path / "site" / missing).unlink()
    with serve(tmp_path / "site") as address, chromium(tmp_path / "profile") as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        load(browser, f"{address}/index.html")
        assert wrong(browser).startswith(message)
        assert not browser.find_element("id", "camera").is_enabled()


def test_opened_from_the_disk(site, browser):
    load(browser, (site / "index.html").as_uri())
    assert wrong(browser).startswith("A page that was opened from the disk may not read the files beside it.")
    assert "python -m http.server" in wrong(browser)


@pytest.mark.parametrize("width", WIDTHS)
def test_fits(site, browser, photo, width, tmp_path):
    """With names as long as ImageNet's, one of them a single long word."""
    shutil.copytree(site, tmp_path / "site")
    config = json.loads((site / "config.json").read_text())
    names = ["German short-haired pointer, " * 3, "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 2] * 5
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    (tmp_path / "site" / "config.json").write_text(json.dumps(config))
    photo.resize((1500, 1000)).save(tmp_path / "photo.jpg")
    resize(browser, width)
    with serve(tmp_path / "site") as address:
        load(browser, f"{address}/index.html")
        of_file(browser, tmp_path / "photo.jpg")
        assert browser.execute_script("return innerWidth") == width
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        shares = [row.value_of_css_property("background-size") for row in browser.find_elements("tag name", "li")]
        percentages = [float(row.text.rsplit("\n", 1)[1][:-2]) for row in browser.find_elements("tag name", "li")]
        assert [float(share.split("%")[0]) for share in shares] == pytest.approx(percentages, abs=0.06)
        boxes = [element.rect for element in browser.find_elements("css selector", "main *") if element.is_displayed()]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        assert all(button.rect["height"] >= 44 for button in browser.find_elements("tag name", "button"))


def in_node(script, *arguments):
    if not (PACKAGES / "@huggingface" / "transformers").is_dir() or shutil.which("node") is None:
        pytest.skip("node or @huggingface/transformers are not here: run `make test-web`")
    command = ["node", "--input-type=module", "--eval", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=PACKAGES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def random_pictures(tmp_path):
    """Of the size that the models take, so that nothing is resized; blue and red differ."""
    generator = np.random.default_rng(0)
    for index in range(4):
        pixels = generator.integers(0, 256, (64, 64, 3)) * (1.0, 0.6, 0.2)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / f"{index}.png")
    return sorted((tmp_path / "pictures").iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_transformers_js_answers_as_pytorch(name, tmp_path, random_pictures):
    model = shallow(name).eval()
    cfg = {"input_size": (3, 64, 64), "mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": "bicubic"}
    model.pretrained_cfg = {"architecture": name, "label_names": list("abcdefghij"), **cfg}
    export_web(model, tmp_path / "site", calibration=tmp_path / "pictures")
    transform = create_transform(**resolve_data_config({}, model=model))
    images = torch.stack([read_image(path, "RGB", transform) for path in random_pictures])
    with torch.inference_mode():
        expected = model(images)
    quantized = onnxruntime.InferenceSession(tmp_path / "site" / "onnx" / "model_quantized.onnx")
    (of_quantized,) = quantized.run(None, {"pixel_values": images.numpy()})
    for dtype, logits, tolerance in (("", expected, 1e-4), ("q8", torch.from_numpy(of_quantized), 0.02)):
        found = in_node(CLASSIFY, tmp_path, dtype, *random_pictures)
        for answers, scores in zip(found, logits.softmax(dim=1).tolist(), strict=True):
            probabilities = dict(zip("abcdefghij", scores, strict=True))
            assert [row["label"] for row in answers] == sorted(probabilities, key=probabilities.get, reverse=True)[:5]
            for row in answers:
                assert row["score"] == pytest.approx(probabilities[row["label"]], abs=tolerance)


def test_pixels_of_transformers_js(tmp_path, photo):
    """It has no filter of PIL's: a photograph comes out nearly the same, closer than with what it calls the same."""
    model = shallow(KINDS[0])
    model.pretrained_cfg = {"architecture": KINDS[0], "mean": MEAN, "std": STD, "crop_pct": 0.888}
    model.pretrained_cfg |= {"interpolation": "bilinear", "input_size": (3, 128, 128)}
    export_web(model, tmp_path / "site")
    photo.resize((1500, 1000)).save(tmp_path / "photo.png")
    transform = create_transform(**resolve_data_config({}, model=model))
    expected = read_image(tmp_path / "photo.png", "RGB", transform)
    path = tmp_path / "site" / "preprocessor_config.json"
    preprocessor = json.loads(path.read_text())
    differences = []
    for resample in (1, 2, 3):
        path.write_text(json.dumps({**preprocessor, "resample": resample}))
        pixels = torch.tensor(in_node(PROCESS, tmp_path, tmp_path / "photo.png")).view(3, 128, 128)
        differences.append((255 * torch.tensor(STD).view(3, 1, 1) * (pixels - expected)).abs().mean().item())
    assert preprocessor["resample"] == 1
    assert differences[0] < 3  # of 255 levels
    assert differences[0] < min(differences[1:]) / 3
