"""The one reader of images: pixels as literal numbers for every kind of file, and what is refused."""

import re
import struct
import warnings
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms

from timm_mobilevit._images import UnreadableImageError, find_images, read_image

PACKAGE = Path(__file__).parents[1] / "timm_mobilevit"
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
DARK = (10, 20, 30)


def pixels(path, mode="RGB"):
    """Rows of pixels. A warning is an error: users would see it for every image."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_image(path, mode, np.array).tolist()


def save(image, path, **options):
    image.save(path, **options)
    return path


def save_row(path, values, dtype, **options):
    """A file with one row of grey values."""
    return save(Image.fromarray(np.array([values], dtype=dtype)), path, **options)


def reason(path):
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path, "RGB", np.array)
    return str(caught.value)


def with_tag(path, out, tag, value):
    """A little-endian TIFF file with another value of one of its tags."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = {struct.unpack_from("<H", data, at)[0]: at for at in range(start + 2, start + 2 + 12 * count, 12)}
    struct.pack_into("<H", data, entries[tag] + 8, value)
    out.write_bytes(data)
    return out


# What is stored for a picture of two rows, 1 2 3 and 4 5 6, by the table of the EXIF standard.
STORED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[3, 6], [2, 5], [1, 4]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[4, 1], [5, 2], [6, 3]],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_is_turned_as_exif_says(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.array(STORED[orientation], dtype=np.uint8))
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(stored, tmp_path / f"turned.{suffix}", exif=exif, **options)
    assert pixels(path, "L") == [[1, 2, 3], [4, 5, 6]]


def test_16_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_row(tmp_path / "turned.png", [0, 257, 514], np.uint16, exif=exif)
    assert pixels(path, "L") == [[0], [1], [2]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x09\0\0\0\0"])
def test_broken_exif_does_not_hide_a_whole_picture(tmp_path, exif):
    path = save(Image.new("RGB", (2, 1), (9, 9, 9)), tmp_path / "image.png", exif=exif)
    assert read_image(path, "RGB", np.array).tolist() == [[[9, 9, 9], [9, 9, 9]]]


def test_exif_that_cannot_be_written_again(tmp_path, monkeypatch):
    """Which is as good as any to say how the image lies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(Image.fromarray(np.array(STORED[6], dtype=np.uint8)), tmp_path / "turned.png", exif=exif)
    monkeypatch.delattr(Image.Exif, "tobytes")
    assert pixels(path, "L") == STORED[1]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_16_bits_of_grey_are_scaled_to_eight(tmp_path, suffix):
    values = [0, 128, 129, 257, 25700, 32768, 65406, 65407, 65535]
    path = save_row(tmp_path / f"grey.{suffix}", values, np.uint16)
    expected = [0, 0, 1, 1, 100, 128, 254, 255, 255]  # over 257, to the nearest
    assert pixels(path, "L") == [expected]
    assert pixels(path, "RGB") == [[[level] * 3 for level in expected]]


def test_16_bits_in_big_endian_tiff(tmp_path):
    path = save_row(tmp_path / "grey.tif", [0, 25700, 65535], ">u2")
    assert path.read_bytes()[:2] == b"MM"
    assert pixels(path, "L") == [[0, 100, 255]]


def test_16_bit_tiff_with_white_as_zero(tmp_path):
    path = with_tag(save_row(tmp_path / "a.tif", [0, 25700, 65535], np.uint16), tmp_path / "b.tif", 262, 0)
    assert pixels(path, "L") == [[255, 155, 0]]


def test_12_bit_tiff(tmp_path):
    path = with_tag(save_row(tmp_path / "a.tif", list(range(90, 98)), np.uint8), tmp_path / "b.tif", 258, 12)
    path = with_tag(path, path, 256, 2)  # two pixels wide: three bytes
    path.write_bytes(path.read_bytes().replace(bytes(range(90, 98)), b"\xff\xf8\x00".ljust(8, b"\0")))  # 4095, 2048
    assert pixels(path, "L") == [[255, 128]]


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("grey.tif", np.float32, "floating-point numbers of unknown range (mode F in a TIFF file)"),
        ("grey.pfm", np.float32, "floating-point numbers of unknown range (mode F in a PPM file)"),
        ("grey.tif", np.int32, "integers of more than eight bits of unknown range (mode I in a TIFF file)"),
    ],
)
def test_unknown_ranges_are_refused(tmp_path, name, dtype, kind):
    message = reason(save_row(tmp_path / name, [0, 1, 2], dtype))
    assert message.startswith(f"not a readable image: its pixels are {kind}; expected eight bits per channel")
    assert "save it as PNG" in message


def test_16_bits_of_another_format_are_refused(tmp_path):
    cards = ("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 2", "NAXIS2  = 1", "END")
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    (tmp_path / "stars.fits").write_bytes(header + b"\0\1\0\2".ljust(2880, b"\0"))
    assert "unknown range (mode I;16 in a FITS file)" in reason(tmp_path / "stars.fits")


def palette_image(mode="P"):
    image = Image.new(mode, (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for index in range(3):
        image.putpixel((index, 0), (index, 255) if mode == "PA" else index)
    return image


@pytest.mark.parametrize(
    ("name", "image", "options", "rgb", "grey"),
    [
        ("one_bit.png", Image.fromarray(np.array([[False, True]])), {}, [[0] * 3, [255] * 3], [0, 255]),
        ("grey.png", Image.new("L", (1, 1), 77), {}, [[77] * 3], [77]),
        ("grey_alpha.png", Image.new("LA", (1, 1), (77, 0)), {}, [[77] * 3], [77]),
        ("grey_key.png", Image.new("L", (1, 1), 77), {"transparency": 77}, [[77] * 3], [77]),
        ("colour.png", Image.new("RGB", (1, 1), DARK), {}, [DARK], [18]),
        (
            "colour_key.png",
            Image.new("RGB", (1, 1), DARK),
            {"transparency": DARK},
            [[10, 20, 30]],
            [18],
        ),
        ("alpha.png", Image.new("RGBA", (1, 1), (10, 20, 30, 0)), {}, [DARK], [18]),
        ("palette.png", palette_image(), {}, [RED, GREEN, BLUE], [76, 150, 29]),
        ("palette_key.png", palette_image(), {"transparency": 1}, [RED, GREEN, BLUE], [76, 150, 29]),
        ("palette_alpha.png", palette_image(), {"transparency": b"\0\x80\xff"}, [RED, GREEN, BLUE], [76, 150, 29]),
        ("palette.gif", palette_image(), {"transparency": 1}, [RED, GREEN, BLUE], [76, 150, 29]),
        ("ink.tif", Image.new("CMYK", (1, 1), (255, 0, 0, 0)), {}, [[0, 255, 255]], [179]),
        ("black.tif", Image.new("CMYK", (1, 1), (0, 0, 0, 255)), {}, [[0, 0, 0]], [0]),
        pytest.param(
            *("luma.tif", Image.new("YCbCr", (1, 1), (77, 128, 128)), {}, [[77] * 3], [77]),
            marks=pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="PIL cannot read what it writes"),
        ),
    ],
)
def test_modes(tmp_path, name, image, options, rgb, grey):
    path = save(image, tmp_path / name, **options)
    assert pixels(path) == [[list(pixel) for pixel in rgb]]
    assert pixels(path, "L") == [grey]


def test_cmyk_jpeg(tmp_path):
    path = save(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "ink.jpg", quality=100)
    assert np.abs(np.array(pixels(path)) - [0, 255, 255]).max() <= 2


def test_colour_profiles_are_not_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    path = save(Image.new("RGB", (1, 1), DARK), tmp_path / "image.png", icc_profile=profile)
    assert pixels(path) == [[[10, 20, 30]]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_first_of_several_frames(tmp_path, suffix):
    frames = [Image.new("RGB", (2, 1), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(frames[0], tmp_path / f"frames.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert pixels(path) == [[list(RED), list(RED)]]


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_truncated_file(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), tmp_path / f"whole.{suffix}")
    assert np.shape(pixels(whole)) == (64, 64, 3)
    data = whole.read_bytes()
    for share in (0, 0.1, 0.5, 0.9):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(data[: int(share * len(data))])
        assert reason(cut).startswith("not a readable image: "), share


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "page.png").write_text("<!DOCTYPE html><html></html>")
    for path in (tmp_path / "text.jpg", tmp_path / "page.png", tmp_path):
        assert reason(path).startswith("not a readable image: ")
    assert reason(tmp_path / "missing.png") == "no such file"


def test_a_transform_that_fails_is_a_reason_too(tmp_path):
    path = save(Image.new("RGB", (2, 1)), tmp_path / "image.png")
    with pytest.raises(UnreadableImageError, match="not a readable image: division by zero"):
        read_image(path, "RGB", lambda image: 1 / 0)


def test_folders_may_be_links(tmp_path):
    (tmp_path / "far").mkdir()
    save(Image.new("L", (1, 1)), tmp_path / "far" / "10.png")
    save(Image.new("L", (1, 1)), tmp_path / "far" / "9.png")
    (tmp_path / "far" / "._9.png").write_bytes(b"what macOS writes beside a file")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "class").symlink_to(tmp_path / "far")
    assert find_images([tmp_path / "near"]) == [tmp_path / "near" / "class" / name for name in ("9.png", "10.png")]


def test_cameras_write_upper_case_extensions(tmp_path):
    names = ("1.png", "DSC_2.JPG", "DSC_10.Jpeg", "scan.PNG")
    for name in names:
        save(Image.new("L", (1, 1)), tmp_path / name)
    assert find_images([tmp_path]) == [tmp_path / name for name in names]


def test_hidden_folders_and_circles_of_links_add_nothing(tmp_path):
    """Jupyter keeps copies in .ipynb_checkpoints."""
    for folder in ("class", "class/.ipynb_checkpoints", ".Trash"):
        (tmp_path / folder).mkdir()
        save(Image.new("L", (1, 1)), tmp_path / folder / "1.png")
    (tmp_path / "class" / "all").symlink_to(tmp_path)
    assert find_images([tmp_path]) == [tmp_path / "class" / "1.png"]
    assert find_images([tmp_path / ".Trash"]) == [tmp_path / ".Trash" / "1.png"]  # named by the user


def test_no_other_module_reads_images():
    reading = re.compile(r"Image\.open\(|ImageDataset\(|imread|exif_transpose|LoadImageFromFile\(")
    found = [path.name for path in PACKAGE.rglob("*.py") if reading.search(path.read_text(encoding="utf-8"))]
    assert sorted(found) == ["_images.py"]
