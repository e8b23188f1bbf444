"""What is updated together: entries of like parameters end to end, groups of equal size stacked."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regkit.groups import Bundle, Read, View
from regkit.optim.batch import Batch, Slice, is_dense, packed
from regkit.penalties.penalty import WeightPenalty
from regkit.ranks import local

Chain = tuple[WeightPenalty, ...]
Group = dict[str, Any]

# Entries in a batch. On a CPU the temporaries should stay in the cache, and be small enough that
# the allocator keeps them instead of handing each back to the system (one thread, a million
# entries, L1: 0.54 ms at 2^18, 17.9 at 2^19; GroupLasso: 8.6 and 9.4, but 18.4 at 2^16); on a GPU
# the number of launches should count, and temporaries of 64 MiB are nothing.
BATCH_ENTRIES = {"cpu": 2**18, "cuda": 2**24}


@dataclass(frozen=True)
class Move:
    """What the optimizer moved a parameter by.

    group: its settings; state: what it keeps; momentum: answer of its momentum buffer; before:
        where the parameter was, if that was kept; fresh: the momentum buffer is still empty.
    """

    group: Group
    state: dict[str, Any]
    momentum: float
    before: Tensor | None = None
    fresh: bool = False

    def slice(self, values: Tensor, view: View | None = None) -> Slice:
        """Return the whole of a parameter's values, or of the groups that a view sees."""
        stop = values.numel() if view is None else view.shape[view.order[0]]
        return Slice(values, view, 0, stop, self.state, self.momentum, self.before)


def entry_batches(
    chains: Mapping[nn.Parameter, Chain], moves: Mapping[nn.Parameter, Move]
) -> Iterator[tuple[Chain, Group, Batch]]:
    """Yield entries by equal penalties, settings, type and device."""
    buckets: dict[Any, list[Slice]] = defaultdict(list)
    settings: dict[int, Group] = {}
    copies: list[tuple[Tensor, Tensor]] = []
    for p, move in moves.items():
        values = local(p.detach())
        if p not in chains or values.numel() == 0:
            continue
        if not is_dense(values):
            copies.append((values, values.contiguous()))
            values = copies[-1][1]
        settings[id(move.group)] = move.group
        key = (chains[p], id(move.group), values.dtype, values.device)
        buckets[key].append(move.slice(values))
    for (chain, place, _, device), slices in buckets.items():
        for batch in packed(slices, _most(device.type)):
            yield chain, settings[place], batch
    for values, copy in copies:
        values.copy_(copy)


def _own(parameter: nn.Parameter) -> Tensor:
    return local(parameter.detach())


def row_batches(
    bundles: Sequence[tuple[WeightPenalty, Bundle]],
    moves: Mapping[nn.Parameter, Move],
    read: Read = _own,
) -> Iterator[tuple[WeightPenalty, list[tuple[Group, Batch]]]]:
    """Yield rows, as batches that stand side by side and hold a part of each row.

    A bundle in one parameter is stacked upon others whose groups have equal size; a bundle in
    several is by itself. Left out where a parameter did not move.

    read: gives the values that are seen and written to; by default this rank's own.
    """
    stacks: dict[Any, list[Slice]] = defaultdict(list)
    settings: dict[int, Group] = {}
    for penalty, bundle in bundles:
        if any(piece.parameter not in moves for piece in bundle.pieces):
            continue
        parts = [
            (moves[p.parameter].group, moves[p.parameter].slice(read(p.parameter), p.view))
            for p in bundle.pieces
        ]
        if len(parts) > 1 or penalty.joint:
            yield from ((penalty, cut) for cut in _side_by_side(parts, bundle, penalty.joint))
            continue
        ((group, one),) = parts
        settings[id(group)] = group
        key = (penalty, id(group), bundle.size, one.parameter.dtype, one.parameter.device)
        stacks[key].append(one)
    for (penalty, place, _, _, device), slices in stacks.items():
        for batch in packed(slices, _most(device.type)):
            yield penalty, [(settings[place], batch)]


def _side_by_side(
    parts: Sequence[tuple[Group, Slice]], bundle: Bundle, joint: bool
) -> Iterator[list[tuple[Group, Batch]]]:
    """Cut the slices of one bundle at the same groups."""
    stop = parts[0][1].stop
    most = _most(parts[0][1].parameter.device.type)
    length = stop if joint else max(most * stop // (bundle.num_groups * bundle.size), 1)
    for start in range(0, stop, length):
        yield [
            (group, Batch([one.between(start, min(start + length, stop))])) for group, one in parts
        ]


def _most(device_type: str) -> int:
    return BATCH_ENTRIES.get(device_type, 2**24)
