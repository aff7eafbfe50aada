"""What every operator of a network computes and moves, counted while it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten


@dataclass(frozen=True)
class Operator:
    """One executed operator.

    Attributes:
        name: Name in torch's operator set, without the namespace.
        flops: Floating-point operations of convolutions and matrix products, two per multiply-accumulate; 0 for others.
        bytes: Inputs read once and outputs written once.
        outputs: Elements of the new tensors.
    """

    name: str
    flops: int
    bytes: int
    outputs: int


def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


def _convolution_backward(gradient: Tensor, images: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """Each of the two gradients takes as many products as the forward pass."""
    *_, transposed, _, _, wanted = rest
    return sum(wanted[:2]) * conv_flop_count(images.shape, weight.shape, gradient.shape, transposed)


# torch counts its fused attention on GPUs only, and the gradient of a grouped convolution as that of a dense one.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {_storage(tensor) for tensor in inputs}
        new = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and _storage(leaf) not in known]
        changed = _changed(func, args, kwargs)
        # Views share the storage of their input, and memory that is only reserved is not touched.
        if (new or changed) and not packet.__name__.startswith(("empty", "new_empty")):
            flops = _FLOPS[packet](*args, **kwargs, out_val=out) if packet in _FLOPS else 0
            moved = sum(map(_bytes, (*inputs, *new, *changed)))
            self.operators.append(Operator(packet.__name__, flops, moved, sum(tensor.numel() for tensor in new)))
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor; one that repeats itself, such as a broadcast bias, is held once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _changed(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an in-place operator writes to."""
    if not func._schema.is_mutable:
        return []
    values = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    written = (argument.name for argument in func._schema.arguments if argument.is_write)
    return [leaf for name in written for leaf in tree_leaves(values.get(name)) if isinstance(leaf, Tensor)]


def record(step: Callable[[], object]) -> list[Operator]:
    """Run a step, not in inference mode, and list the operators that it executed.

    Example:
        >>> a, b = torch.zeros(2, 3), torch.zeros(3, 5)
        >>> record(lambda: (a @ b).view(10).relu())
        [Operator(name='mm', flops=60, bytes=124, outputs=10), Operator(name='relu', flops=0, bytes=80, outputs=10)]
    """
    with _Recorder() as recorder:
        step()
    return recorder.operators
