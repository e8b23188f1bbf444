"""Groups of weights that several ranks share (FSDP2): seen where they lie, or put together.

A group that lies whole on one rank is left to it. All others are put together by one collective a
bucket: each rank gathers the weights and what the metric reads of the optimizer's state, takes
the same prox of the same numbers, and keeps its own rows of the result. So nothing has to be
agreed upon, and the prox is the one of a single process.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regkit.optim.batching import Batch, row_batches
from regkit.optim.parts import Part
from regkit.optim.step_size import Move, Moves, StepSizeOf
from regkit.penalties.penalty import WeightPenalty
from regkit.structure.distributed import (
    buckets,
    gathered,
    local,
    parameters_of,
    rows_of,
    scatter_back,
    shared_rows,
)
from regkit.structure.groups import GroupSet, GroupView

Batches = Iterator[tuple[WeightPenalty, list[Batch]]]


class DividedParts(NamedTuple):
    """Penalties on groups, by who can see the groups whole.

    local: this rank by itself; each rank has other groups of them, those whose rows it holds.
    shared: no rank without the others, and then every rank has all groups.
    """

    local: Sequence[Part] = ()
    shared: Sequence[Part] = ()

    @property
    def every(self) -> list[Part]:
        """Return both."""
        return [*self.local, *self.shared]


def divide(parts: Sequence[Part]) -> DividedParts:
    """Divide penalties on groups by whether this rank sees their groups whole by itself.

    Raises: InputError when weights are sharded otherwise than by rows.
    """
    here, shared = [], []
    for part in parts:
        group_set = part.group_set
        own = group_set if shared_rows(group_set) is None else _own_groups(part.penalty, group_set)
        if own is None:
            shared.append(part)
        elif own.num_groups > 0:
            here.append(replace(part, group_set=own))
    return DividedParts(here, shared)


def _own_groups(penalty: WeightPenalty, group_set: GroupSet) -> GroupSet | None:
    """Return the groups of this rank, None where some group lies on several."""
    views = [local_view(p.view, p.parameter) for p in group_set.pieces]
    # With as many rows the parameters are cut at the same groups.
    equal = len({p.parameter.shape[0] for p in group_set.pieces}) == 1
    if penalty.joint or penalty.ranks or not equal or any(view is None for view in views):
        return None
    pieces = (replace(p, view=v) for p, v in zip(group_set.pieces, views, strict=True))
    return replace(group_set, pieces=tuple(pieces))


def local_view(view: GroupView, parameter: Tensor) -> GroupView | None:
    """Return how this rank's rows are seen, None unless the groups are counted row by row."""
    rows = rows_of(parameter)
    if rows is None or view.narrowed is not None:
        return view if rows is None else None
    product, front = 1, []
    for axis, size in enumerate(view.shape):
        if product == rows.num_rows and size != 1:
            break
        product *= size
        front.append(axis)
    axis = view.order[0]
    if axis not in front or view.shape[axis] != rows.num_rows:
        return None
    here = rows.run.stop - rows.run.start
    return replace(view, shape=(*view.shape[:axis], here, *view.shape[axis + 1 :]))


def group_batches(
    parts: DividedParts,
    scale: Callable[[Part], WeightPenalty | None],
    moves: Moves,
    step_size: StepSizeOf,
    gates: Mapping[str, Tensor],
    read: Callable[[nn.Parameter], Tensor] = torch.Tensor.detach,
) -> Batches:
    """Yield penalties at their strength, each with rows of the groups that it acts on.

    gates: of groups, by `Part.key`.
    read: gives what is seen, and written to, of a parameter; placed on the ranks as it is.
    """
    yield from row_batches(_at(parts.local, scale, gates), moves, lambda p: local(read(p)))
    yield from _gathered_batches(parts.shared, scale, moves, step_size, gates, read)


def _at(
    parts: Sequence[Part],
    scale: Callable[[Part], WeightPenalty | None],
    gates: Mapping[str, Tensor],
) -> list[tuple[WeightPenalty, GroupSet, bool, Tensor | None]]:
    active = [(part, now) for part in parts if (now := scale(part)) is not None]
    whole = [now.joint or now.ranks for _, now in active]
    return [
        (now, part.group_set, one, gates.get(part.key))
        for (part, now), one in zip(active, whole, strict=True)
    ]


def _gathered_batches(
    parts: Sequence[Part],
    scale: Callable[[Part], WeightPenalty | None],
    moves: Moves,
    step_size: StepSizeOf,
    gates: Mapping[str, Tensor],
    read: Callable[[nn.Parameter], Tensor],
) -> Batches:
    """Yield `row_batches` of whole tensors, and keep this rank's rows of what is written there.

    One collective a bucket, so `moves` has to name the same parameters on all ranks. It does:
    FSDP2 reduces a gradient on all ranks or on none, and gives one to a rank without rows too.
    """
    moved = [
        (part, part.group_set)
        for part in parts
        if scale(part) is not None and all(p in moves for p in part.parameters)
    ]
    for bucket in buckets(moved):
        parameters = parameters_of(bucket)
        joint = set(parameters_of([pair for pair in bucket if pair[0].penalty.joint]))
        wanted: list[dict[str, Tensor]] = []
        for p in parameters:
            before = {"before": moves[p].before} if p in joint else {}
            found = {"values": read(p), **_states(moves[p], step_size), **before}
            wanted.append({key: t for key, t in found.items() if t is not None})
        tensors = iter(gathered([t for each in wanted for t in each.values()]))
        wholes, whole_moves = {}, {}
        for p, each in zip(parameters, wanted, strict=True):
            whole = {key: next(tensors) for key in each}
            wholes[p], before = whole.pop("values"), whole.pop("before", None)
            state = {**moves[p].state, **whole}
            whole_moves[p] = replace(moves[p], state=state, before=before)
        yield from row_batches(
            _at([part for part, _ in bucket], scale, gates), whole_moves, wholes.__getitem__
        )
        scatter_back(wholes, {p: read(p) for p in parameters})


def _states(move: Move, step_size: StepSizeOf) -> dict[str, Tensor]:
    """Return the tensors of the state that the step is computed of, where they are shards."""
    keys = [key for key in step_size(move).keys if key is not None]
    return {key: move.state[key] for key in keys if hasattr(move.state[key], "placements")}


def fill(into: Tensor, whole: Tensor) -> None:
    """Write a whole tensor, or this rank's rows of it, into a tensor that is placed already."""
    rows = rows_of(into)
    local(into).copy_(whole if rows is None else whole[rows.run])
