"""ExecuTorch: a ``.pte`` file for phones and other small devices, computed by XNNPACK."""

import copy
import os
import shutil
import sysconfig
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import replacing
from ._calibration import NUM_COMPARED, calibration_images, check_correlation
from ._compare import TOLERANCE, as_list, check_outputs, make_images, output_names
from ._facts import find_facts, write_facts
from ._program import trace
from ._target import check_target
from ._xnnpack import FOR_XNNPACK
from .quantize import QuantizationLoss
from .runtimes import open_file


def export_executorch(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    labels: Sequence[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
) -> float | QuantizationLoss:
    """Write a model as an ExecuTorch program, for one image of a fixed size at a time.

    The model is optimised first (batch norms folded into convolutions) and is itself left as it is. The program's
    method ``forward`` takes float32 [1, channels, height, width], the same values as the model does, and gives the
    model's outputs. XNNPACK, a library for CPUs, computes all of a classifier; what is left of detectors and segmentors
    runs in ExecuTorch's portable operators, which an application has to link too.

    The program is run in ExecuTorch and compared with PyTorch before it is put in place. A JSON file beside it holds
    architecture, preprocessing, size of the images and class names: ``digits.pte.json`` for ``digits.pte``.

    With ``calibration``, convolutions, linear layers, sums of two maps and the pooling compute with eight bits: weights
    signed with one scale per output channel, activations signed with one scale per tensor. Attention, norms and SiLU
    stay in float32, as do input and output.

    Args:
        model: A timm model, a ``features_only`` one, or a network of ``timm_mobilevit.export.mm``.
        path: File to write, ``….pte``; an existing one is replaced.
        input_size: Channels, height and width of the image.
        labels: Names of the classes; by default those that the model's configuration records or, for published
            weights, ImageNet's.
        calibration: Folder of images like those that the model will see, for eight bits; at most 128 of them are used.

    Returns:
        The largest difference from PyTorch, as a share of the standard deviation of an output; with eight bits, how
        near the outputs are on some of the images.

    Raises:
        ImportError: If the extra ``executorch`` is not installed.
        ValueError: If the path has another ending or is a folder, the number of labels is not that of the classes, or
            the size is none or one that the model refuses; or the folder has no images, or the outputs with eight bits
            have a correlation below 0.8 with the model's.
        FileNotFoundError: If there is no such folder.
        RuntimeError: If the program does not compute what the model computes. It is not kept.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise ImportError(
            f"ExecuTorch export needs executorch ({error}); install it with the torch that it was built for: pip "
            'install "timm-mobilevit[executorch]"'
        ) from error

    path = Path(path)
    check_target(path, "executorch")
    facts = find_facts(model, input_size, labels)
    images = calibration_images(facts, Path(calibration)) if calibration is not None else []
    rewrite = partial(_quantize, images=images) if images else None
    program = trace(model, input_size, rewrite=rewrite, decompositions=FOR_XNNPACK)
    if shutil.which("flatc") is None:
        # ExecuTorch looks for its compiler on the PATH. There it is only if this Python's environment is activated.
        os.environ.setdefault("FLATC_EXECUTABLE", str(Path(sysconfig.get_path("scripts"), "flatc")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)  # ExecuTorch and torch about each other's code
        warnings.filterwarnings("ignore", r"guard_size_oblivious", FutureWarning)
        executable = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()

    reference = copy.deepcopy(model).cpu().float().eval()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            executable.write_to_file(file)
        if images:
            run, compared = open_file(temporary), images[:NUM_COMPARED]
            result: float | QuantizationLoss = check_correlation(
                [expected for image in compared for expected in _outputs(reference, image)],
                [torch.from_numpy(output) for image in compared for output in run(image.numpy())],
                path,
            )
        else:
            example = make_images((1, *input_size))
            expected = _outputs(reference, example)
            result = check_outputs(
                expected, open_file(temporary)(example.numpy()), output_names(model, len(expected)), TOLERANCE
            )
        write_facts(temporary, facts)
    return result


def _quantize(graph: Any, *, images: list[torch.Tensor]) -> Any:
    """Eight bits for what XNNPACK computes with them, with ranges from images."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc, unused-ignore]
        """Leaves what a detector computes behind its modules in float32: eight bits are too few for boxes.

        The filter that XNNPACK's quantizer offers does not reach concatenations.
        """

        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            for node in model.graph.nodes:
                if len(node.meta.get("nn_module_stack", ())) < 2:  # only that of the detector itself
                    node.meta.pop("quantization_annotation", None)
            return model

    quantizer = Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(graph, quantizer)
    for image in images:
        observed(image)
    return convert_pt2e(observed)


def _outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        return as_list(model(images))
