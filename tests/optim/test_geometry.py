"""The table of geometry names the entries that a view sees, wherever they lie."""

import pytest
import torch
from torch import Tensor, nn

from regkit.ops.kernel_args import GroupAxis
from regkit.optim.group_layout import geometry_of
from regkit.structure.attention import heads
from regkit.structure.groups import GroupSet, GroupView, Piece, along, view_of
from regkit.structure.recurrent import units
from regkit.structure.selectors import select_parameters


def single(parameter: nn.Parameter, view: GroupView) -> GroupSet:
    return GroupSet("it", (Piece("it", parameter, view),))


def rows_of(group_set: GroupSet) -> Tensor:
    """Read groups by the table alone, sorted within each piece."""
    table, parameters, which = geometry_of([group_set], [lambda p: 7])
    assert table is not None
    assert which == [7] * len(parameters)
    rows = []
    for row in table.tolist():
        weight = parameters[row[GroupAxis.WEIGHT]].detach()
        sizes = [
            row[a]
            for a in (
                GroupAxis.COUNT1,
                GroupAxis.COUNT2,
                GroupAxis.SIZE1,
                GroupAxis.SIZE2,
                GroupAxis.SIZE3,
            )
        ]
        steps = [
            row[a]
            for a in (
                GroupAxis.STRIDE1,
                GroupAxis.STRIDE2,
                GroupAxis.STEP1,
                GroupAxis.STEP2,
                GroupAxis.STEP3,
            )
        ]
        offset = weight.storage_offset() + row[GroupAxis.OFFSET]
        seen = weight.as_strided(sizes, steps, offset)
        rows.append(seen.reshape(sizes[0] * sizes[1], -1).sort(1).values)
    return torch.cat(rows, 1)


def expected(group_set: GroupSet) -> Tensor:
    return torch.cat(
        [p.view.rows(p.parameter.detach()).sort(1).values for p in group_set.pieces], 1
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("layout", ["filter", "in_channel", "kernel", "time_tap"])
@pytest.mark.parametrize(
    "conv", [nn.Conv3d(4, 6, (3, 2, 2)), nn.Conv3d(4, 6, 3, groups=2), nn.ConvTranspose3d(4, 6, 2)]
)
def test_convolutions(conv: nn.Module, layout: str, last: bool):
    if last:
        conv = conv.to(memory_format=torch.channels_last_3d)
    entry = next(e for e in select_parameters(conv) if e.chosen)
    view = view_of(entry, layout)
    assert isinstance(view, GroupView)
    group_set = single(entry.parameter, view)
    assert torch.equal(rows_of(group_set), expected(group_set))


def test_units_and_heads():
    for group_set in [
        *units(nn.LSTM(5, 4, num_layers=2, bidirectional=True))[0],
        *heads(nn.MultiheadAttention(8, 4)),
    ]:
        assert torch.equal(rows_of(group_set), expected(group_set))


def test_a_part_of_the_rows():
    weight = nn.Parameter(torch.randn(9, 3, 2))
    group_set = single(weight, along(weight.shape, 0, 3, start=2, inner=2))
    assert torch.equal(rows_of(group_set), expected(group_set))
    assert not torch.equal(expected(group_set), weight.detach()[:6].view(3, -1).sort(1).values)


def test_axes_are_joined_in_memory_order():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d))
    table, *_ = geometry_of([single(weight, along(weight.shape, 0, 4))], [lambda p: 0])
    assert table is not None
    assert table[0, GroupAxis.SIZE1 :].tolist() == [1, 0, 1, 0, 24, 1]


def test_too_many_axes():
    weight = nn.Parameter(torch.randn(6, 6, 6, 6, 6)[::2, ::2, ::2, ::2, ::2])
    table, *_ = geometry_of([single(weight, GroupView((3,) * 5, (0, 1, 2, 3, 4)))], [lambda p: 0])
    assert table is None
