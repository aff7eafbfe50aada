"""Geometry of patches: pure functions between feature maps and the rows of pixels that transformers attend over.

Letters: B batch, C channels, H×W map, ph×pw patch, P = ph·pw pixels in a patch, nh×nw grid of patches, N = nh·nw
patches. The *phase* of a pixel is its place inside its patch; attention never mixes phases.
"""

import torch
from torch import Tensor

from .modes import is_exporting, is_transformed


def resize_to_patches(x: Tensor, patch_h: int, patch_w: int, align_corners: bool) -> Tensor:
    """Enlarge a map to the next multiple of the patch, bilinearly; a map that the patch divides is returned unchanged.

    A map smaller than a patch becomes one patch, as in the references.

    Args:
        x: Map [B, C, H, W].
        patch_h: Height of a patch, in pixels of the map.
        patch_w: Width of a patch.
        align_corners: As in ``torch.nn.functional.interpolate``. The generations differ: False for v1 and its v3
            successors, True for v2 and its own.

    Returns:
        Map [B, C, ceil(H / patch_h)·patch_h, ceil(W / patch_w)·patch_w].

    Example:
        >>> resize_to_patches(torch.zeros(1, 8, 7, 8), 2, 2, align_corners=True).shape
        torch.Size([1, 8, 8, 8])
    """
    height, width = x.shape[-2], x.shape[-1]
    new_height = (height + patch_h - 1) // patch_h * patch_h
    new_width = (width + patch_w - 1) // patch_w * patch_w
    return resize(x, new_height, new_width, align_corners)


def resize(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Resize a map [B, C, H, W] bilinearly to [B, C, height, width]; the same size costs nothing."""
    # A size that torch.export keeps symbolic is not an int. There the branch would make the size static, so the
    # interpolation stays in the graph; at equal sizes it returns its input bit for bit.
    known = isinstance(height, int) and isinstance(width, int)
    if known and height == x.shape[-2] and width == x.shape[-1]:
        return x
    return torch.nn.functional.interpolate(x, size=(height, width), mode="bilinear", align_corners=align_corners)


def to_channels_last(x: Tensor) -> Tensor:
    """Lay a map [B, C, H, W] out with its channels last in memory, so that the functions below need only views.

    Convolutions keep the layout of their input: a network in the default layout makes one copy, in its first block.
    Other runtimes choose their layouts themselves.
    """
    if is_exporting() or is_transformed():
        return x
    # Not contiguous(memory_format=...), which torch.func.vmap does not have.
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # [B, C, H, W]


def unfold_phases(x: Tensor, patch_h: int, patch_w: int) -> Tensor:
    """Gather the pixels of each phase into the sequences of v1's attention.

    Args:
        x: Map [B, H, W, C], H and W multiples of the patch.
        patch_h: Height of a patch.
        patch_w: Width of a patch.

    Returns:
        Tokens [P·B, N, C], in one copy.

    Example:
        >>> unfold_phases(torch.arange(16).reshape(1, 4, 4, 1), 2, 2)[0, :, 0]  # upper left pixel of each patch
        tensor([ 0,  2,  8, 10])
    """
    B, H, W, C = x.shape
    nh, nw = H // patch_h, W // patch_w
    if is_exporting():  # in two steps, rows and then columns: many runtimes have no tensors of five dimensions
        x = x.reshape(B * nh, patch_h, W, C).transpose(0, 1)  # [ph, B·nh, W, C]
        x = x.reshape(patch_h, B * nh * nw, patch_w, C).transpose(1, 2)  # [ph, pw, B·N, C]
        return x.reshape(patch_h * patch_w * B, nh * nw, C)  # [P·B, N, C]
    x = x.reshape(B * nh, patch_h, nw, patch_w, C)  # [B·nh, ph, nw, pw, C]
    x = x.permute(1, 3, 0, 2, 4)  # [ph, pw, B·nh, nw, C]
    return x.reshape(patch_h * patch_w * B, nh * nw, C)  # [P·B, N, C]


def fold_phases(tokens: Tensor, patch_h: int, patch_w: int, height: int, width: int) -> Tensor:
    """Put tokens back in their places: the inverse of :func:`unfold_phases`.

    Args:
        tokens: Tokens [P·B, N, C].
        patch_h: Height of a patch.
        patch_w: Width of a patch.
        height: Height of the map.
        width: Width of the map.

    Returns:
        Map [B, H, W, C], in one copy.

    Example:
        >>> x = torch.randn(2, 4, 6, 8)
        >>> torch.equal(fold_phases(unfold_phases(x, 2, 3), 2, 3, 4, 6), x)
        True
    """
    C = tokens.shape[-1]
    nw = width // patch_w
    if is_exporting():  # columns and then rows, as above
        x = tokens.reshape(patch_h, patch_w, -1, C).transpose(1, 2)  # [ph, B·N, pw, C]
        x = x.reshape(patch_h, -1, width, C).transpose(0, 1)  # [B·nh, ph, W, C]
        return x.reshape(-1, height, width, C)  # [B, H, W, C]
    x = tokens.reshape(patch_h, patch_w, -1, nw, C)  # [ph, pw, B·nh, nw, C]
    x = x.permute(2, 0, 3, 1, 4)  # [B·nh, ph, nw, pw, C]
    # A single patch is a view, whose strides would change the memory layout that the next convolution chooses.
    return x.reshape(-1, height, width, C).contiguous()  # [B, H, W, C]


def phases_to_rows(x: Tensor, patch_h: int, patch_w: int) -> Tensor:
    """Rearrange a map so that each row holds the pixels of one phase.

    Args:
        x: Map [B, C, H, W], H and W multiples of the patch.
        patch_h: Height of a patch.
        patch_w: Width of a patch.

    Returns:
        Map [B, C, P, N], in eager mode with its channels last in memory.

    Example:
        >>> phases_to_rows(torch.arange(16).reshape(1, 1, 4, 4), 2, 2)[0, 0, 0]  # upper left pixel of each patch
        tensor([ 0,  2,  8, 10])
    """
    B, C, H, W = x.shape
    nh, nw = H // patch_h, W // patch_w
    if not (is_exporting() or is_transformed()):  # one copy, which moves the channels of a pixel together
        x = x.permute(0, 2, 3, 1).reshape(B, nh, patch_h, nw, patch_w, C)  # [B, nh, ph, nw, pw, C]
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(B, patch_h * patch_w, nh * nw, C)  # [B, P, N, C]
        return x.permute(0, 3, 1, 2)  # [B, C, P, N]
    # Other runtimes have their own layouts, and many no tensors of five dimensions: in two steps, rows and then
    # columns.
    x = x.reshape(B * C, nh, patch_h, W).transpose(1, 2)  # [B·C, ph, nh, W]
    x = x.reshape(B * C * patch_h, nh * nw, patch_w).transpose(1, 2)  # [B·C·ph, pw, N]
    return x.reshape(B, C, patch_h * patch_w, nh * nw)  # [B, C, P, N]


def rows_to_phases(x: Tensor, patch_h: int, patch_w: int, height: int, width: int) -> Tensor:
    """Put the pixels back in their places: the inverse of :func:`phases_to_rows`.

    Args:
        x: Map [B, C, P, N].
        patch_h: Height of a patch.
        patch_w: Width of a patch.
        height: Height of the result.
        width: Width of the result.

    Returns:
        Map [B, C, height, width].

    Example:
        >>> x = torch.randn(2, 8, 4, 6)
        >>> torch.equal(rows_to_phases(phases_to_rows(x, 2, 3), 2, 3, 4, 6), x)
        True
    """
    B, C, nh, nw = x.shape[0], x.shape[1], height // patch_h, width // patch_w
    if not (is_exporting() or is_transformed()):  # as above
        x = x.permute(0, 2, 3, 1).reshape(B, patch_h, patch_w, nh, nw, C)  # [B, ph, pw, nh, nw, C]
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(B, height, width, C).contiguous()  # [B, H, W, C]
        return x.permute(0, 3, 1, 2)  # [B, C, H, W]
    x = x.reshape(B * C * patch_h, patch_w, nh * nw).transpose(1, 2)  # [B·C·ph, N, pw]
    x = x.reshape(B * C, patch_h, nh, width).transpose(1, 2)  # [B·C, nh, ph, W]
    return x.reshape(B, C, height, width)  # [B, C, H, W]
