"""ExecuTorch programs: run in ExecuTorch's own runtime and compared with PyTorch."""

import pytest
import timm
import torch
from export_models import shallow
from kinds import KINDS, NAMES
from PIL import Image
from random_weights import randomise
from torch import nn

from timm_mobilevit.export import export_model
from timm_mobilevit.export._network import prepare
from timm_mobilevit.export._xnnpack import FOR_XNNPACK
from timm_mobilevit.export.executorch import _quantize
from timm_mobilevit.inference.optimize import optimize_for_inference


def check(model, path, size):
    """Compare on an image that differs from the one that was exported with."""
    runtime = pytest.importorskip(
        "executorch.runtime", reason='needs the extra: pip install "timm-mobilevit[executorch]"'
    )
    model = model.eval()
    x = torch.rand(1, 3, size, size)
    export_model(model, path, input_size=(3, size, size))
    outputs = runtime.Runtime.get().load_program(path).load_method("forward").execute([x])
    with torch.inference_mode():
        expected = model(x)
    for ours, theirs in zip(expected if isinstance(expected, list) else [expected], outputs, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * float(ours.std()))


@pytest.mark.parametrize("name", KINDS)
def test_computes_what_pytorch_does(name, tmp_path):
    check(shallow(name), tmp_path / "model.pte", 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pte", "model.pte.json"]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_computes_what_pytorch_does_at_a_size_that_the_patch_does_not_divide(name, tmp_path):
    check(randomise(timm.create_model(name, num_classes=10)), tmp_path / "model.pte", 72)


def test_backbone(tmp_path):
    check(randomise(timm.create_model(KINDS[0], features_only=True)), tmp_path / "model.pte", 64)


@pytest.mark.parametrize("name", KINDS)
def test_xnnpack_computes_it_all(name):
    exir = pytest.importorskip("executorch.exir", reason='needs the extra: pip install "timm-mobilevit[executorch]"')
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    program = prepare(shallow(name), (3, 64, 64)).trace(decompositions=FOR_XNNPACK)
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).exported_program()
    parts = [node for node in lowered.graph.nodes if node.op == "call_function" and "delegate" in str(node.target)]
    assert len(parts) == 1


@pytest.mark.parametrize("name", KINDS)
def test_operators_for_xnnpack_are_equal(name):
    model, x = shallow(name), torch.rand(1, 3, 64, 64)
    graph = prepare(model, (3, 64, 64)).trace(decompositions=FOR_XNNPACK).module()
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_every_convolution_has_eight_bits():
    pytest.importorskip("executorch.exir", reason='needs the extra: pip install "timm-mobilevit[executorch]"')
    image = torch.rand(1, 3, 64, 64)
    for name in KINDS[:2]:
        graph = torch.export.export(optimize_for_inference(shallow(name)), (image,)).module()
        weights = [
            str(node.args[1].target)
            for node in _quantize(graph, images=[image]).graph.nodes
            if node.target is torch.ops.aten.conv2d.default
        ]
        assert len(weights) > 20
        assert all("dequantize" in weight for weight in weights)


class Detector(nn.Module):
    """Boxes of what a network says and of anchors that need more than eight bits."""

    output_names = ("boxes",)

    def __init__(self):
        super().__init__()
        self.network = shallow(KINDS[0], num_classes=4)
        self.export_metadata = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}

    def forward(self, x):
        places = torch.arange(500.0)[None]
        anchors = torch.cat([places, places + 0.5, places + 20, places + 40.25])
        return self.network(x)[:, :, None] + anchors  # [B, 4, 500]


def test_eight_bits_are_for_modules(tmp_path):
    runtimes = pytest.importorskip(
        "executorch.runtime", reason='needs the extra: pip install "timm-mobilevit[executorch]"'
    )
    (tmp_path / "images").mkdir()
    for index in range(8):
        pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    model, path, x = Detector(), tmp_path / "model.pte", torch.rand(1, 3, 64, 64)
    loss = export_model(model, path, input_size=(3, 64, 64), calibration=tmp_path / "images")
    assert loss.correlation > 0.999
    (boxes,) = runtimes.Runtime.get().load_program(path).load_method("forward").execute([x])
    difference = (boxes - model(x)).abs().max()
    assert 1e-5 < difference < 0.5  # of 540: eight bits are 2 apart
