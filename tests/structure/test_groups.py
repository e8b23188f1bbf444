"""Groups against index arithmetic written out by loops."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkit.structure.groups import GroupSet, GroupView, Piece, along, view_of
from regkit.structure.selectors import select_parameters


def seen(module: nn.Module, layout: str, leaf: str = "weight") -> Tensor | str:
    entry = next(e for e in select_parameters(module) if e.name == leaf)
    view = view_of(entry, layout)
    if isinstance(view, str):
        return view
    rows = view.rows(entry.parameter.detach())
    assert rows.shape == (view.num_groups, view.size)
    return rows


def numbered(module: nn.Module) -> nn.Module:
    """Give every entry of every parameter its own number."""
    count = 1
    for p in module.parameters():
        p.data = torch.arange(count, count + p.numel(), dtype=torch.float32).view(p.shape)
        count += p.numel()
    return module


def groups_by_loops(weight: Tensor, group_of: Callable[..., Any]) -> set[frozenset[float]]:
    groups: dict[Any, set[float]] = {}
    for index in product(*map(range, weight.shape)):
        groups.setdefault(group_of(*index), set()).add(float(weight[index]))
    return {frozenset(g) for g in groups.values()}


CONV = nn.Conv3d(4, 6, (3, 2, 2), bias=False)
GROUPED = nn.Conv3d(4, 6, (3, 1, 2), groups=2, bias=False)
TRANSPOSED = nn.ConvTranspose3d(4, 6, (3, 1, 2), groups=2, bias=False)
LINEAR = nn.Linear(5, 3, bias=False)

# Group of the entry at (out, in, time, height, width), or at (row, column).
CASES: list[tuple[nn.Module, str, Callable[..., Any]]] = [
    (CONV, "filter", lambda o, i, t, h, w: o),
    (CONV, "in_channel", lambda o, i, t, h, w: i),
    (CONV, "kernel", lambda o, i, t, h, w: (o, i)),
    (CONV, "time_tap", lambda o, i, t, h, w: t),
    (CONV, "time", lambda o, i, t, h, w: (o, i, h, w)),
    (CONV, "fiber", lambda o, i, t, h, w: (o, t, h, w)),
    (GROUPED, "filter", lambda o, i, t, h, w: o),
    # Filters 0-2 read channels 0 and 1, filters 3-5 read 2 and 3.
    (GROUPED, "in_channel", lambda o, i, t, h, w: 2 * (o // 3) + i),
    # Input channels 0 and 1 make outputs 0-2, channels 2 and 3 make 3-5.
    (TRANSPOSED, "filter", lambda i, o, t, h, w: 3 * (i // 2) + o),
    (TRANSPOSED, "in_channel", lambda i, o, t, h, w: i),
    (TRANSPOSED, "fiber", lambda i, o, t, h, w: (o, t, h, w)),
    (LINEAR, "filter", lambda o, i: o),
    (LINEAR, "in_channel", lambda o, i: i),
    (LINEAR, "fiber", lambda o, i: o),
]


@pytest.mark.parametrize(("module", "layout", "group_of"), CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_groups_by_loops(
    module: nn.Module, layout: str, group_of: Callable[..., Any], channels_last: bool
):
    numbered(module)
    weight = module.weight.detach().clone()
    if channels_last and weight.ndim == 5:
        module.weight.data = weight.to(memory_format=torch.channels_last_3d)
    rows = seen(module, layout)
    assert isinstance(rows, Tensor)
    found = {frozenset(row) for row in rows.tolist()}
    assert len(found) == len(rows)
    assert found == groups_by_loops(weight, group_of)


@pytest.mark.parametrize(
    ("layout", "order"), [("time", (0, 1, 3, 4, 2)), ("fiber", (0, 2, 3, 4, 1))]
)
def test_order_along_time_and_inputs_is_kept(layout: str, order: tuple[int, ...]):
    numbered(CONV)
    rows = seen(CONV, layout)
    weight = CONV.weight.detach().permute(order)
    assert torch.equal(rows, weight.reshape(-1, weight.shape[-1]))


@pytest.mark.parametrize(("rnn", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.LSTMCell, 4)])
def test_all_gates_of_a_recurrent_unit_are_one_group(rnn: Callable[..., nn.Module], gates: int):
    module = numbered(rnn(5, 3))
    leaf = "weight_hh" if rnn is nn.LSTMCell else "weight_hh_l0"
    weight = getattr(module, leaf).detach()
    assert weight.shape == (gates * 3, 3)
    found = {frozenset(row) for row in seen(module, "filter", leaf).tolist()}
    assert found == groups_by_loops(weight, lambda row, column: row % 3)
    columns = seen(module, "in_channel", leaf.replace("hh", "ih"))
    assert len(columns) == 5


def test_filters_lie_in_one_block_whatever_the_memory_format():
    """So that a view of them costs no copy."""
    conv = nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    rows = seen(conv, "filter")
    assert isinstance(rows, Tensor)
    assert rows.data_ptr() == conv.weight.data_ptr()


@pytest.mark.parametrize(
    ("module", "layout", "why"),
    [
        (LINEAR, "kernel", "no convolution"),
        (LINEAR, "time_tap", "no 3-D convolution"),
        (nn.Conv2d(3, 2, 3), "time", "no 3-D convolution"),
        (nn.Conv3d(3, 2, (1, 3, 3)), "time_tap", "one tap"),
    ],
)
def test_what_a_weight_has_not_is_said(module: nn.Module, layout: str, why: str):
    assert why in seen(module, layout)


@pytest.mark.parametrize("shape", [(), (7,)])
def test_vectors_and_scalars_are_groups_of_one(shape: tuple[int, ...]):
    model = nn.Module()
    model.scale = nn.Parameter(torch.randn(shape))
    entry = select_parameters(model, "scale")[0]
    view = view_of(entry, "filter")
    assert isinstance(view, GroupView)
    assert torch.equal(view.rows(entry.parameter.detach()).flatten(), model.scale.flatten())


def test_along_by_loops():
    """12 columns: skip 2, then twice 2 groups of 2, and one column that is not seen."""
    t = torch.arange(22.0).view(2, 11)
    rows = along((2, 11), 1, 2, inner=2, outer=2, start=2).rows(t)
    expected = [[2, 3, 6, 7, 13, 14, 17, 18], [4, 5, 8, 9, 15, 16, 19, 20]]
    assert [sorted(row) for row in rows.tolist()] == expected


def test_a_bundle_writes_what_it_reads():
    conv, norm = nn.Conv3d(2, 4, 3, bias=False), nn.BatchNorm3d(4)
    pieces = (
        Piece("weight", conv.weight, along(conv.weight.shape, 0, 4)),
        Piece("scale", norm.weight, along((4,), 0, 4)),
    )
    group_set = GroupSet("conv", pieces)
    rows = group_set.rows()
    assert rows.shape == (4, 55) == (group_set.num_groups, group_set.size)
    assert torch.equal(rows, torch.cat([conv.weight.flatten(1), norm.weight[:, None]], 1))
    with torch.no_grad():
        group_set.write(torch.zeros_like(rows[:1]).expand(4, -1) + torch.arange(4.0)[:, None])
    assert (conv.weight == torch.arange(4.0).view(4, 1, 1, 1, 1)).all()
    assert torch.equal(norm.weight.detach(), torch.arange(4.0))
