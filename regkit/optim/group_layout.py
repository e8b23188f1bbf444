"""Where groups lie in memory, as a few sizes and strides."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from regkit.ops.kernel_args import NUM_AXES, GroupAxis
from regkit.structure.distributed import local
from regkit.structure.groups import GroupSet, GroupView

MOST_LEADS = 2
MOST_INNER = 3


def geometry_of(
    group_sets: Sequence[GroupSet], rules: Sequence[Callable[[nn.Parameter], int]]
) -> tuple[Tensor | None, list[nn.Parameter], list[int]]:
    """Return the table of geometry, the parameters that it names, and the rule of each.

    A parameter with several pieces (or group sets) stands in the list once for each. None for the
    table where some group has more axes than it holds.
    """
    rows, parameters, which = [], [], []
    for number, (group_set, rule) in enumerate(zip(group_sets, rules, strict=True)):
        for piece in group_set.pieces:
            axes = _axes(local(piece.parameter.detach()), piece.view)
            if axes is None:
                return None, [], []
            rows.append([number, len(parameters), *axes])
            parameters.append(piece.parameter)
            which.append(rule(piece.parameter))
    return torch.tensor(rows, dtype=torch.int64).view(-1, NUM_AXES), parameters, which


def _axes(weight: Tensor, view: GroupView) -> list[int] | None:
    """Return offset, two axes (size, stride) that count the groups, three within a group."""
    seen = view(weight)
    axes = [(int(size), int(step)) for size, step in zip(seen.shape, seen.stride(), strict=True)]
    leads = _merged(axes[: view.lead])
    # The order within a group is free.
    inner = _merged(sorted(axes[view.lead :], key=lambda axis: -axis[1]))
    if len(leads) > MOST_LEADS or len(inner) > MOST_INNER:
        return None
    leads = [(1, 0)] * (MOST_LEADS - len(leads)) + leads
    inner = [(1, 0)] * (MOST_INNER - len(inner)) + inner
    offset = int(seen.storage_offset() - weight.storage_offset())
    return [offset, *(number for axis in leads + inner for number in axis)]


def _merged(axes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join neighbouring axes that one stride runs through, and drop those of one element."""
    merged: list[tuple[int, int]] = []
    for size, stride in axes:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


assert list(GroupAxis)[GroupAxis.OFFSET :] == list(range(GroupAxis.OFFSET, NUM_AXES))
