"""Heads of attention layers: what belongs to one alone."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from regkit.structure.channels import READER, WRITER, LayerSlices, Slice, Width
from regkit.structure.groups import GroupSet, Piece, along
from regkit.structure.selectors import clean_name

# Leaf, axis along which the heads lie, how often their pattern repeats (query, key and value).
_Part = tuple[str, int, int]
_JOINT: list[_Part] = [("qkv.weight", 0, 3), ("qkv.bias", 0, 3)]
_SWIN: list[_Part] = [*_JOINT, ("proj.weight", 1, 1), ("relative_position_bias_table", 1, 1)]
_MVIT: list[_Part] = [*_JOINT, ("project.0.weight", 1, 1)]
_TORCH: list[_Part] = [
    ("in_proj_weight", 0, 3),
    ("q_proj_weight", 0, 1),
    ("k_proj_weight", 0, 1),
    ("v_proj_weight", 0, 1),
    ("in_proj_bias", 0, 3),
    ("bias_k", 2, 1),
    ("bias_v", 2, 1),
    ("out_proj.weight", 1, 1),
]
# Classes by their names: a model of torchvision's has torchvision loaded, others need it not.
_MVIT_NAME = "torchvision.models.video.mvit.MultiscaleAttention"
_LAYOUTS = {
    "torch.nn.modules.activation.MultiheadAttention": _TORCH,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _SWIN,
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": _SWIN,
    _MVIT_NAME: _MVIT,
}


def is_attention(module: nn.Module) -> bool:
    """Say whether a module is an attention layer whose heads are known, or inherits from one."""
    return _known(module) is not None


def is_pooled(module: nn.Module) -> bool:
    """Say whether a module pools the queries and keys of all its heads with the same weights."""
    return _known(module) == _MVIT_NAME


def heads(model: nn.Module) -> list[GroupSet]:
    """Return the heads of each attention layer that is known, one group set for a layer.

    A head is its rows of query, key and value with their biases, and the columns of the last
    projection that read it; in Swin its column of the relative position biases too. With its
    columns zero it adds nothing to the output, whatever else it holds, so an all-zero head can go.
    The bias of the last projection stays, and what all heads share: MViT's pooling, its norms and
    relative positions.

    Known layers: torch's MultiheadAttention, torchvision's Swin and MViT. Of others the order of
    the rows is not known.
    """
    group_sets = []
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        if is_attention(module):
            pieces = tuple(p for p in _pieces(name, module) if p.parameter not in seen)
            seen |= {p.parameter for p in pieces}
            if pieces:
                group_sets.append(GroupSet(clean_name(name), pieces))
    return group_sets


def head_slices(name: str, module: Any) -> LayerSlices | str:
    """Return what the heads of an attention layer hold, or why they cannot be cut.

    MViT's layer knows how many numbers a head has; the others divide the width of their input by
    the number of heads, and would with fewer heads take each for wider.
    """
    if _known(module) != _MVIT_NAME:
        return f"{name} finds the size of a head from its number of heads, so none can be cut"
    size = module.head_dim
    one = torch.arange(module.num_heads)[:, None] * size + torch.arange(size)
    joint = torch.cat([one + part * module.output_dim for part in range(3)], dim=1)
    slices = [
        Slice(f"{name}.qkv.weight", 0, joint, WRITER),
        Slice(f"{name}.qkv.bias", 0, joint, WRITER),
        Slice(f"{name}.project.0.weight", 1, one, READER),
    ]
    widths = [Width(name, "num_heads", 1), Width(name, "output_dim", size)]
    widths += [Width(f"{name}.qkv", "out_features", 3 * size)]
    return slices, [*widths, Width(f"{name}.project.0", "in_features", size)]


def _pieces(name: str, module: nn.Module) -> Iterator[Piece]:
    count = int(module.num_heads)  # type: ignore[arg-type]: nn.Module may hold anything
    parameters = dict(module.named_parameters())
    for leaf, axis, outer in _LAYOUTS[_known(module) or ""]:
        parameter = parameters.get(leaf)
        if parameter is not None:
            inner = parameter.shape[axis] // (count * outer)
            view = along(parameter.shape, axis, count, inner=inner, outer=outer)
            full = clean_name(f"{name}.{leaf}" if name else leaf)
            yield Piece(full, parameter, view.in_memory_order(parameter))


def _known(module: nn.Module) -> str | None:
    """Return under which name of `_LAYOUTS` a module goes."""
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return next((name for name in names if name in _LAYOUTS), None)
