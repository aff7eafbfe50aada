"""How a file of any format comes about: prepared, written, run and compared, and only then put in place."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import replacing
from ._calibration import QuantizationLoss
from ._compare import HALF_TOLERANCE, TOLERANCE
from ._facts import write_facts
from ._format import Format
from ._network import prepare

_OF_THE_NETWORK = ("softmax", "image_input", "dynamic_batch", "dynamic_size")


def write_file(
    form: Format,
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] = (3, 256, 256),
    labels: Sequence[str] | None = None,
    check: bool = True,
    **options: Any,
) -> float | QuantizationLoss | None:
    """Write a model in a format, as ``export_model`` says."""
    path = Path(path)
    if unknown := sorted(options.keys() - form.takes.keys()):
        raise ValueError(f"{form.title} does not take {', '.join(unknown)}; it takes {', '.join(form.takes)}")
    options = {**form.takes, **options}
    if options.get("calibration") is not None:
        options["calibration"] = Path(options["calibration"])
        if options.get("half"):
            raise ValueError("eight bits go with weights in float32: leave out half")
    form.check_target(path)
    form.require()
    of_the_network = {key: options.pop(key) for key in _OF_THE_NETWORK if key in options}
    if options.get("suppress"):  # detections are those of one image
        of_the_network.pop("dynamic_batch", None)
    network = prepare(model, input_size, labels, **of_the_network)
    if check and form.open is not None:
        network.tolerance = HALF_TOLERANCE if options.get("half") else TOLERANCE
    with replacing(path) as temporary:
        found: float | QuantizationLoss | None = form.write(network, temporary, **options)
        if not form.has_metadata:
            write_facts(temporary, network.facts)
        if found is None and form.open is not None:
            found = network.compare(form.open(temporary, torch.get_num_threads()))
    return found
