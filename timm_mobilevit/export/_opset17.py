"""Opset 17 for compilers and runtimes that know no newer one: torch writes opset 18, which is rewritten here.

onnx's own converter of versions does not know ``Split`` of opset 18. Nothing here changes a number. What opset 17
cannot express is refused, by this module, or by the checker and the runtime, which see an unknown operator.
"""

from typing import Any

# Opset 18 made the axes of these an input. ReduceSum has had it since 13.
_REDUCTIONS = {
    f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
# Attributes that opset 18 added, with the values that stand for the behaviour of 17.
_ADDED = {"Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"}} | {
    name: {"noop_with_empty_axes": 0} for name in _REDUCTIONS
}


def to_opset_17(proto: Any) -> None:
    """Rewrite an ``onnx.ModelProto`` of opset 18 in place.

    Raises:
        ValueError: If opset 17 cannot express it.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        same = _ADDED.get(node.op_type, {})
        if any(attributes.get(name, value) != value for name, value in same.items()) or (
            node.op_type in _REDUCTIONS and len(node.input) > 1 and node.input[1] not in constants
        ):
            raise ValueError(
                f"opset 17 has no {node.op_type} with {attributes} as in {node.name}; use opset 18 or newer"
            )
        # Without num_outputs, Split divides evenly, or fails.
        gone = {*same, "num_outputs"} if node.op_type == "Split" else set(same)
        for attribute in [attribute for attribute in node.attribute if attribute.name in gone]:
            node.attribute.remove(attribute)
        if node.op_type in _REDUCTIONS and len(node.input) > 1:
            axes = numpy_helper.to_array(constants[node.input.pop()])
            node.attribute.append(helper.make_attribute("axes", axes.tolist()))
    used = {name for node in proto.graph.node for name in node.input}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)
    (version,) = proto.opset_import
    version.version = 17
