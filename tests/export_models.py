"""Small models with random weights, and ONNX Runtime: for the tests of exported files."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_weights import randomise

from timm_mobilevit import MobileViT
from timm_mobilevit.variants import VARIANTS


def run_file(path, images):
    """Outputs by name, as arrays."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(
        zip((o.name for o in session.get_outputs()), session.run(None, {"images": images.numpy()}), strict=True)
    )


def interface(path):
    """Data type and sizes of each input and output of an ONNX file; a size that is free is a name."""
    import onnx

    graph = onnx.load(path).graph
    return {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }


def shallow_variant(name):
    """A row with every kind of layer that the variant has, once per stage: exporting takes a third of the time."""
    return replace(VARIANTS[name], stage2_depth=1, transformer_depths=(1, 1, 1))


def shallow(name, num_classes=10):
    return randomise(MobileViT(shallow_variant(name), num_classes=num_classes))


@contextmanager
def shallow_zoo():
    """Whatever builds a model by its name builds a shallow one: commands, configs, timm itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIANTS:
            patch.setitem(VARIANTS, name, shallow_variant(name))
        yield


def close(actual, expected):
    """Within 1e-4 of the standard deviation."""
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=1e-4 * expected.std().item())


def assert_traced_plain(model, images):
    """What torch.jit.trace records computes the same, without tensors that are refused elsewhere."""
    traced = torch.jit.trace(model.eval(), images)
    torch.testing.assert_close(traced(images), model(images), rtol=1e-4, atol=1e-4)
    graph = torch.jit.freeze(traced).inlined_graph
    torch._C._jit_pass_complete_shape_analysis(graph, (images,), False)
    shapes = [
        value.type().sizes()
        for node in graph.nodes()
        for value in node.outputs()
        if value.type().kind() == "TensorType"
    ]
    assert any(shapes)
    assert all(len(shape) <= 4 for shape in shapes if shape)


def assert_plain(path):
    """What any runtime takes, and what may be published.

    At most four dimensions, operators of ONNX alone, no reduction over a single axis counted from the end, which pnnx
    loses for ncnn, and nothing of the machine that the file was written on.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.value_info, *graph.output)}
    assert {name for node in graph.node for name in node.output} <= ranks.keys()
    ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    assert {name: rank for name, rank in ranks.items() if rank > 4} == {}
    assert {opset.domain for opset in onnx.load(path).opset_import} == {node.domain for node in graph.node} == {""}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type.startswith("Reduce"):
            axes = [a.ints for a in node.attribute if a.name == "axes"]
            axes += [onnx.numpy_helper.to_array(constants[name]).tolist() for name in node.input[1:]]
            assert [list(found) for found in axes if len(found) == 1 and found[0] < 0] == [], node.name
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")  # random weights hold any three letters
    content = proto.SerializeToString()
    for text in ("stack_trace", "site-packages", str(Path(__file__).parents[1]), ".py"):
        assert text.encode() not in content
