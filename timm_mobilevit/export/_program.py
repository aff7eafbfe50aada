"""A model as a graph of PyTorch operators: what Core ML and ExecuTorch files are made from."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..inference.optimize import optimize_for_inference
from ._compare import make_images


def trace(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    rewrite: Callable[[Any], Any] | None = None,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
) -> torch.export.ExportedProgram:
    """Trace a model for inference on one image of a fixed size.

    Args:
        model: The model; it stays as it is.
        input_size: Channels, height and width of the image.
        rewrite: What is done to the traced graph before its operators are broken down, such as quantisation.
        decompositions: By operator of PyTorch, what it is broken down to.

    Raises:
        ValueError: If the size is none, or the model refuses it.

    Example:
        >>> import timm
        >>> program = trace(timm.create_model("mobilevitv3_xxs", num_classes=10), (3, 64, 64))
        >>> program.module()(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    check_input_size(input_size)
    image = make_images((1, *input_size))
    model = copy.deepcopy(model).cpu().float().eval()
    with torch.inference_mode():
        model(image)  # what the model itself has to say about its input comes first
    # The channels-last layout is PyTorch's business; other runtimes choose their own.
    optimized: Any = optimize_for_inference(model)
    optimized.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)  # torch.export, about torch's own code
        program = torch.export.export(optimized, (image,))
        if rewrite is not None:
            program = torch.export.export(rewrite(program.module()), (image,))
        decomposed: torch.export.ExportedProgram = program.run_decompositions(dict(decompositions or {}))
    return decomposed


def check_input_size(input_size: tuple[int, int, int]) -> None:
    """Refuse what is not channels, height and width.

    Raises:
        ValueError: If it is anything else.
    """
    if len(input_size) != 3 or any(not isinstance(n, int) or n < 1 for n in input_size):
        raise ValueError(f"input_size must be channels, height and width, such as (3, 256, 256); got {input_size!r}")
