"""Groups of weights that several ranks share (FSDP2): seen where they lie, or put together.

A group that lies whole on one rank is left to it. All others are put together by one collective a
bucket: each rank gathers the weights and what the metric reads of the optimizer's state, takes
the same prox of the same numbers, and keeps its own rows of the result. So nothing has to be
agreed upon, and the prox is the one of a single process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from regkit.groups import Bundle, View
from regkit.optim.batch import Batch, Slice
from regkit.optim.metric import Metric
from regkit.optim.plan import Group, Move, row_batches
from regkit.optim.torch_backend import at_strength
from regkit.penalties.penalty import WeightPenalty
from regkit.ranks import buckets, gathered, local, parameters_of, put_back, rows_of, shared_rows

Part = tuple[WeightPenalty, Bundle]
Batches = Iterator[tuple[WeightPenalty, list[tuple[Group, Batch]]]]


def divide(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """Return group penalties as this rank sees them by itself, and those that need the others.

    Of the former a rank has the groups whose rows it holds; of the latter every rank has all.
    Raises: InputError when weights are sharded otherwise than by rows.
    """
    alone, together = [], []
    for penalty, bundle in parts:
        here = bundle if shared_rows(bundle) is None else _here(penalty, bundle)
        if here is None:
            together.append((penalty, bundle))
        elif here.num_groups > 0:
            alone.append((penalty, here))
    return alone, together


def _here(penalty: WeightPenalty, bundle: Bundle) -> Bundle | None:
    """Return the groups of this rank, None where some group lies on several."""
    views = [local_view(p.view, p.parameter) for p in bundle.pieces]
    # With as many rows the parameters are cut at the same groups.
    equal = len({p.parameter.shape[0] for p in bundle.pieces}) == 1
    if penalty.joint or not equal or any(view is None for view in views):
        return None
    pieces = (replace(p, view=v) for p, v in zip(bundle.pieces, views, strict=True))
    return replace(bundle, pieces=tuple(pieces))


def local_view(view: View, parameter: Tensor) -> View | None:
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
    alone: Sequence[Part],
    together: Sequence[Part],
    moves: Mapping[nn.Parameter, Move],
    metric: Metric,
    strength: float | None,
) -> Batches:
    """Yield the penalties at this strength, each with rows of the groups that it acts on.

    alone, together: as `divide` returns them.
    """
    yield from row_batches(_at(alone, strength), moves)
    yield from _gathered_batches(_at(together, strength), moves, metric)


def _at(parts: Sequence[Part], strength: float | None) -> list[Part]:
    return [(now, bundle) for penalty, bundle in parts for now in at_strength((penalty,), strength)]


def _gathered_batches(
    parts: Sequence[Part], moves: Mapping[nn.Parameter, Move], metric: Metric
) -> Batches:
    """Yield `row_batches` of whole tensors, and keep this rank's rows of what is written there.

    One collective a bucket, so `moves` has to name the same parameters on all ranks. It does:
    FSDP2 reduces a gradient on all ranks or on none, and gives one to a rank without rows too.
    """
    moved = [part for part in parts if all(p.parameter in moves for p in part[1].pieces)]
    for bucket in buckets(moved):
        parameters = parameters_of(bucket)
        joint = set(parameters_of([part for part in bucket if part[0].joint]))
        wanted: list[dict[str, Tensor]] = []
        for p in parameters:
            before = {"before": moves[p].before} if p in joint else {}
            found = {"values": p.detach(), **_states(p, moves[p], metric), **before}
            wanted.append({key: t for key, t in found.items() if t is not None})
        tensors = iter(gathered([t for each in wanted for t in each.values()]))
        wholes, whole_moves = {}, {}
        for p, each in zip(parameters, wanted, strict=True):
            whole = {key: next(tensors) for key in each}
            wholes[p], before = whole.pop("values"), whole.pop("before", None)
            state = {**moves[p].state, **whole}
            whole_moves[p] = replace(moves[p], state=state, before=before)
        yield from row_batches(bucket, whole_moves, wholes.__getitem__)
        put_back(wholes, {p: p.detach() for p in parameters})


def _states(p: nn.Parameter, move: Move, metric: Metric) -> dict[str, Tensor]:
    """Return the tensors of the state that the metric reads, found by asking it for no entries."""
    state = _Asked(move.state)
    metric(move.group, Batch([Slice(local(p.detach()), None, 0, 0, state, move.momentum)]))
    return {key: state[key] for key in sorted(state.asked) if hasattr(state[key], "placements")}


class _Asked(dict[str, Any]):
    """What an optimizer keeps, and which of it was asked for."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__(state)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)
