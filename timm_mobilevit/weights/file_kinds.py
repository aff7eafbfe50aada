"""Recognise paths that hold no checkpoint by their first bytes or their kind in the file system."""

import json
import re
import stat
from pathlib import Path

# First bytes of files that users give instead of a checkpoint: what they are, and what to do.
_UNPACK = "unpack it, and name the checkpoint in it"
_EXPORTED = "`timm-mobilevit predict` and `evaluate` take it as --checkpoint; its weights cannot be read back"
_FOREIGN = "save the model's state dict with torch.save or as safetensors"
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer", "fetch the file with `git lfs pull`"),
    (
        rb"(?i)(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype|html|head|body|\?xml|svg|error)",
        "a web page",
        "download the file itself; on the Hugging Face Hub and GitHub its address has /resolve/ or /raw/, not /blob/",
    ),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK),
    (rb"BZh[1-9]1AY&SY", "a bzip2 archive", _UNPACK),
    (rb"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (rb"(?s).{257}ustar", "a tar archive", _UNPACK),
    (rb"PK\x05\x06", "an empty zip archive", "download or copy it again"),
    (rb"\x08[\x01-\x20](?:[\x12\x1a\x22\x32\x3a\x42]|\x28[\x00-\x7f])", "an ONNX file", _EXPORTED),
    (rb"(?s).{4}TFL3", "a LiteRT file", _EXPORTED),
    (rb"(?s).{4}ET\d\d", "an ExecuTorch file", _EXPORTED),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", _FOREIGN),
    (rb"\x93NUMPY", "an array of NumPy", _FOREIGN),
    (rb"GGUF", "a GGUF file", _FOREIGN),
    (rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8|(?s:RIFF.{4}WEBP)", "an image", "name the checkpoint"),
    (rb"%PDF-", "a PDF document", "name the checkpoint"),
)
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".tar", ".ckpt")
_LONGEST = 1 << 20  # bytes of a JSON file that are read; an index of shards has some 100,000


def check_kind(path: Path) -> None:
    """Make sure that a path is a file that may be a checkpoint of the format that its name says.

    Nothing is read from what is no regular file, such as a pipe: reading would wait for a writer.

    Args:
        path: The path.

    Raises:
        FileNotFoundError: If there is no regular file; the message says what there is instead.
        ValueError: If the file is something else; the message says what it is, and what to do.

    Example:
        >>> import tempfile
        >>> page = Path(tempfile.mkdtemp(), "model.pth")
        >>> _ = page.write_text("<!doctype html><title>Not found</title>")
        >>> check_kind(page)
        Traceback (most recent call last):
        ...
        ValueError: /tmp/.../model.pth is damaged or no checkpoint: it is a web page; download the file itself; ...
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(f"no checkpoint file at {path}: it is a link to {path.readlink()}") from None
        raise FileNotFoundError(f"no checkpoint file at {path}") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"no checkpoint file at {path}: a part of that path is a file") from None
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(f"no checkpoint file at {path}: it is a folder{_inside(path)}")
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise FileNotFoundError(f"no checkpoint file at {path}: it is {kind}; write what it gives to a file first")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is damaged: it is empty; download or copy it again")
    holds = _format(start, path.stat().st_size)
    if holds and (holds == "safetensors") != (path.suffix == ".safetensors"):
        name = f"{path.stem}{'.safetensors' if holds == 'safetensors' else '.pth'}"
        raise ValueError(f"{path} is a file of {holds}, which its name does not say: rename it to {name}")
    if holds:
        return
    for beginning, kind, advice in _BEGINNINGS:
        if re.match(beginning, start):
            raise ValueError(f"{path} is damaged or no checkpoint: it is {kind}; {advice}")
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        raise ValueError(f"{path} is damaged or no checkpoint: it is {_json_kind(path)}")


def _format(start: bytes, size: int) -> str:
    """Return the format of a checkpoint with these first bytes; empty if they are not those of a checkpoint."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    # A zip archive, and what files of torch.save from before PyTorch 1.6 begin with: its magic number as a pickle.
    return "torch.save" if start.startswith((b"PK\3\4", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")) else ""


def _json_kind(path: Path) -> str:
    """Return what a JSON file is, and what to do."""
    with path.open("rb") as file:
        text = file.read(_LONGEST)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if b'"weight_map"' in text and (content is None or "weight_map" in content):
        return (
            "an index of shards, which holds no weights; name a file that holds all of them: save the model again with "
            "a max_shard_size that is larger than it"
        )
    return "JSON; name the file with the weights, which lies beside a config.json"


def _inside(path: Path) -> str:
    """Return the files of a folder that the user may have meant."""
    try:
        names = sorted(p.name for p in path.iterdir() if p.name.endswith(ENDINGS))
    except OSError:
        return ""
    return f"; name one in it, such as {path / names[0]}" if names else ""
