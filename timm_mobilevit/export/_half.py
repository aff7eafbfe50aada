"""Half precision inside an ONNX file: for runtimes that take the precision from it, such as TensorRT from version 11.

Weights, convolutions, linear layers and activations are float16. Norms and softmax, whose sums and squares are larger
than float16 holds, stay float32, and so does all that follows the last convolution or linear layer: the coordinates of
boxes in pixels have more digits than float16.
"""

from typing import Any

_EXACT = ("InstanceNormalization", "LayerNormalization", "Softmax")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_half(proto: Any, *, half_io: bool) -> Any:
    """Convert an ``onnx.ModelProto`` with the types of all tensors to float16; it may be changed.

    With ``half_io``, inputs and outputs that are float32 are float16 too.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in [value for value in proto.graph.value_info if value.name in weights]:
        proto.graph.value_info.remove(value)  # the tool would call all of them float16
    half = convert_float_to_float16(
        proto,
        keep_io_types=not half_io,
        disable_shape_infer=True,  # torch has written all types
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_EXACT],
        node_block_list=_after_the_weights(proto.graph),
    )
    model = ir.from_proto(half)
    TopologicalSortPass()(model)  # ONNX Runtime's tool appends its nodes
    for node in model.graph:
        # The tool rounds to float16 between two operators in float32, too.
        if _is_cast(node, ir.DataType.FLOAT) and _is_cast(before := node.inputs[0].producer(), ir.DataType.FLOAT16):
            old, new = node.outputs[0], before.inputs[0]
            if new.dtype != ir.DataType.FLOAT:
                continue
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            if new.is_graph_output():
                old.name, new.name = new.name, old.name
    RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)


def _is_cast(node: Any, dtype: Any) -> bool:
    return node is not None and node.op_type == "Cast" and node.attributes["to"].as_int() == dtype


def _after_the_weights(graph: Any) -> list[str]:
    """Name the nodes whose outputs reach no convolution and no linear layer."""
    needed: set[str] = set()
    after = []
    for node in reversed(graph.node):
        if node.op_type in _WEIGHTED or not needed.isdisjoint(node.output):
            needed.update(node.input)
        else:
            after.append(node.name)
    return after
