"""ExecuTorch: a ``.pte`` file for phones and other small devices, its convolutions and linear layers in XNNPACK."""

import os
import shutil
import sysconfig
import warnings
from pathlib import Path

from torch import nn

from .._files import replacing
from ._program import trace


def export_executorch(
    model: nn.Module, path: str | os.PathLike[str], *, input_size: tuple[int, int, int] = (3, 256, 256)
) -> None:
    """Write a model as an ExecuTorch program, for one image of a fixed size at a time.

    The model is optimised first (batch norms folded into convolutions) and is itself left as it is. The program's
    method ``forward`` takes float32 [1, channels, height, width], the same values as the model does, and gives the
    model's outputs. XNNPACK, a library for CPUs, computes what it can; the rest runs in ExecuTorch's portable
    operators, which an application has to link too.

    Args:
        model: A timm model, a ``features_only`` one, or a network of ``timm_mobilevit.export.mm``.
        path: File to write, usually ``….pte``; an existing one is replaced.
        input_size: Channels, height and width of the image.

    Raises:
        ImportError: If the extra ``executorch`` is not installed.
        ValueError: If the size is none, or the model refuses it.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise ImportError(
            f"ExecuTorch export needs executorch ({error}); install it in the version that was built for your torch, "
            'for torch 2.12 with: pip install "timm-mobilevit[executorch]"'
        ) from error

    program = trace(model, input_size)
    if shutil.which("flatc") is None:
        # ExecuTorch looks for its compiler on the PATH. There it is only if this Python's environment is activated.
        os.environ.setdefault("FLATC_EXECUTABLE", str(Path(sysconfig.get_path("scripts"), "flatc")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)  # ExecuTorch and torch about each other's code
        warnings.filterwarnings("ignore", r"guard_size_oblivious", FutureWarning)
        executable = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()

    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        executable.write_to_file(file)
