"""Many parameters as one vector, or as one matrix of rows, so that a step costs few operations.

A vector holds the entries in storage order: an element-wise penalty does not care, and no memory
format costs a copy. A matrix holds a group a row.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from regkit.optim.step_size import Move, Moves, Number, StepSize, StepSizeOf
from regkit.structure.distributed import local
from regkit.structure.groups import GroupSet, GroupView

# Entries in a batch. On a CPU the temporaries should stay in the cache, and be small enough that
# the allocator keeps them instead of handing each back to the system (one thread, a million
# entries, L1: 0.54 ms at 2^18, 17.9 at 2^19; GroupLasso: 8.6 and 9.4, but 18.4 at 2^16); on a GPU
# the number of launches should count, and temporaries of 64 MiB are nothing.
BATCH_ENTRIES = {"cpu": 2**18, "cuda": 2**24}


@dataclass(frozen=True)
class Slice:
    """A run of entries, or of groups, of one parameter.

    values: of the parameter; this rank's own, or all of them.
    view: how a tensor of its shape is seen; None for its entries in storage order (it is dense
        then).
    start, stop: the run, along the first axis of the view.
    move: what the optimizer did to the parameter.
    gate: bytes of `regkit.ops.gate`: of the entries, laid out as the values, or of the groups, end
        to end; None where every zero may wake.
    """

    values: Tensor
    view: GroupView | None
    start: int
    stop: int
    move: Move
    gate: Tensor | None = None

    @classmethod
    def whole(
        cls, values: Tensor, move: Move, view: GroupView | None = None, gate: Tensor | None = None
    ) -> "Slice":
        """Return all entries, or all groups that a view sees."""
        stop = values.numel() if view is None else view.shape[view.order[0]]
        return cls(values, view, 0, stop, move, gate)

    def seen(self, tensor: Tensor) -> Tensor:
        """Return the run as it lies in memory: of the values a view, which is written to."""
        whole = flat(tensor, self.values) if self.view is None else self.view(tensor)
        return whole[self.start : self.stop]

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the run as a vector, or as a matrix (groups, size)."""
        seen = self.seen(tensor)
        if self.view is None:
            return seen
        return seen.reshape(prod(seen.shape[: self.view.lead]), -1)

    def gates(self) -> Tensor:
        """Return the bytes of the run as they lie in memory."""
        assert self.gate is not None
        if self.view is None:
            return flat(self.gate, self.values)[self.start : self.stop]
        first = self.view.shape[self.view.order[0]]
        return self.gate.view(first, -1)[self.start : self.stop].view(-1)

    def between(self, start: int, stop: int) -> "Slice":
        """Return a part of the run."""
        return replace(self, start=start, stop=stop)

    @property
    def per_index(self) -> int:
        """Number of entries for each place along the first axis of the view."""
        if self.view is None:
            return 1
        return self.values.numel() // max(self.view.shape[self.view.order[0]], 1)


@dataclass(frozen=True)
class Batch:
    """Slices that are updated together; all of one param group."""

    slices: Sequence[Slice]

    @property
    def lr(self) -> Number:
        """Learning rate of their group."""
        return self.slices[0].move.group["lr"]

    def values(self) -> Tensor:
        """Return all entries, in float32 at least; possibly a view, not to be written to."""
        return _joined([s.rows(s.values) for s in self.slices])

    def write(self, rows: Tensor) -> None:
        """Write the entries back, in few launches."""
        targets = [s.seen(s.values) for s in self.slices]
        leads = [1 if s.view is None else s.view.lead for s in self.slices]
        counts = [prod(t.shape[:lead]) for t, lead in zip(targets, leads, strict=True)]
        parts = [p.reshape(t.shape) for p, t in zip(rows.split(counts), targets, strict=True)]
        # What the prox has returned as it was is there already.
        pairs = [
            (t, p) for t, p in zip(targets, parts, strict=True) if t.data_ptr() != p.data_ptr()
        ]
        if pairs:
            targets, parts = map(list, zip(*pairs, strict=True))
            torch._foreach_copy_(targets, parts)  # pyright: ignore[reportPrivateImportUsage]: no public name

    def gates(self) -> Tensor | None:
        """Return the gates of all entries or groups, not to be written to; None without any."""
        if self.slices[0].gate is None:
            return None
        parts = [s.gates() for s in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def write_gates(self, gates: Tensor) -> None:
        """Write the gates back."""
        targets = [s.gates() for s in self.slices]
        parts = list(gates.split([len(t) for t in targets]))
        torch._foreach_copy_(targets, parts)  # pyright: ignore[reportPrivateImportUsage]: no public name

    def step(self, step_size: StepSizeOf) -> Number:
        """Return the step of every entry: a number where all agree, else laid out as `values`."""
        sizes = [step_size(s.move) for s in self.slices]
        if all(_agree(sizes[0], size) for size in sizes[1:]):
            return sizes[0].evaluate(self._state, self._laid)
        parts = []
        for size, s in zip(sizes, self.slices, strict=True):
            alone = Batch([s])
            step = size.evaluate(alone._state, alone._laid)
            values = alone.values()
            parts.append(torch.as_tensor(step, dtype=values.dtype, device=values.device))
            parts[-1] = parts[-1].expand_as(values)
        return _joined(parts)

    def _state(self, key: str) -> Tensor:
        return _joined([s.rows(local(s.move.state[key])) for s in self.slices])

    def _laid(self, tensor: Tensor) -> Tensor:
        (only,) = self.slices
        return only.rows(local(tensor))


def _agree(one: StepSize, other: StepSize) -> bool:
    """Say whether two parameters have their steps by one formula, with the same numbers.

    Numbers on a GPU are never compared: that would wait for it.
    """
    if one.inverse is not None or (one.keys, one.eps) != (other.keys, other.eps):
        return False
    rates = not isinstance(one.rate, Tensor) and not isinstance(other.rate, Tensor)
    if one.rate is not other.rate and not (rates and one.rate == other.rate):
        return False
    if one.count is None or other.count is None:
        return one.count is other.count
    on_host = one.count.device.type == other.count.device.type == "cpu"
    return on_host and bool(one.count == other.count)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return whole.to(torch.promote_types(whole.dtype, torch.float32))


def _own(parameter: nn.Parameter) -> Tensor:
    return local(parameter.detach())


def entry_batches(
    kinds: Mapping[nn.Parameter, Any],
    moves: Moves,
    gates: Mapping[nn.Parameter, Tensor] | None = None,
    read: Callable[[nn.Parameter], Tensor] = _own,
) -> Iterator[tuple[Any, Batch]]:
    """Yield entries of one kind, of equal settings, type and device, end to end.

    kinds: of each parameter, comparable; those without one are left out.
    gates: of those that have some. read: gives the values that are seen and written to.
    """
    if not kinds:
        return
    buckets: dict[Any, list[Slice]] = defaultdict(list)
    copies: list[tuple[Tensor, Tensor]] = []
    for p, move in moves.items():
        if p not in kinds:
            continue
        values = read(p)
        if values.numel() == 0:
            continue
        if not is_dense(values):
            copies.append((values, values.contiguous()))
            values = copies[-1][1]
        gate = None if gates is None or p not in gates else local(gates[p])
        key = (kinds[p], id(move.group), gate is None, values.dtype, values.device)
        buckets[key].append(Slice.whole(values, move, gate=gate))
    for (kind, _, _, _, device), slices in buckets.items():
        for batch in packed(slices, most_entries(device.type)):
            yield kind, batch
    for values, copy in copies:
        values.copy_(copy)


def row_batches(
    group_sets: Sequence[tuple[Any, GroupSet, bool, Tensor | None]],
    moves: Moves,
    read: Callable[[nn.Parameter], Tensor] = _own,
) -> Iterator[tuple[Any, list[Batch]]]:
    """Yield rows, as batches that stand side by side and hold a part of each row.

    A group set in one parameter is stacked upon others of its kind whose groups have equal size; a
    group set in several is by itself. Left out where a parameter did not move.

    group_sets: each with its kind, comparable, whether its rows are seen all at once (joint), and
        the gates of its groups.
    read: gives the values that are seen and written to; by default this rank's own.
    """
    stacks: dict[Any, list[Slice]] = defaultdict(list)
    for kind, group_set, joint, gate in group_sets:
        if any(piece.parameter not in moves for piece in group_set.pieces):
            continue
        parts = [
            Slice.whole(read(p.parameter), moves[p.parameter], p.view, gate)
            for p in group_set.pieces
        ]
        if len(parts) > 1 or joint:
            yield from ((kind, cut) for cut in _side_by_side(parts, group_set, joint))
            continue
        one = parts[0]
        what = one.values.dtype, one.values.device
        stacks[kind, id(one.move.group), group_set.size, gate is None, *what].append(one)
    for (kind, _, _, _, _, device), slices in stacks.items():
        for batch in packed(slices, most_entries(device.type)):
            yield kind, [batch]


def _side_by_side(
    parts: Sequence[Slice], group_set: GroupSet, joint: bool
) -> Iterator[list[Batch]]:
    """Cut the slices of one group set at the same groups."""
    stop = parts[0].stop
    most = most_entries(parts[0].values.device.type)
    length = stop if joint else max(most * stop // (group_set.num_groups * group_set.size), 1)
    for start in range(0, stop, length):
        yield [Batch([one.between(start, min(start + length, stop))]) for one in parts]


def packed(slices: Sequence[Slice], most: int) -> Iterator[Batch]:
    """Cut slices into batches of at most `most` entries (or one row), splitting the long ones."""
    batch: list[Slice] = []
    room = most
    for s in slices:
        length = max(most // max(s.per_index, 1), 1)
        for start in range(s.start, s.stop, length):
            run = s.between(start, min(start + length, s.stop))
            entries = (run.stop - run.start) * run.per_index
            if batch and entries > room:
                yield Batch(batch)
                batch, room = [], most
            batch.append(run)
            room -= entries
    if batch:
        yield Batch(batch)


def beside(steps: Sequence[Number], values: Sequence[Tensor]) -> Number:
    """Put the steps of batches side by side; a number where all agree."""
    numbers = {s for s in steps if not isinstance(s, Tensor)}
    if len(steps) == 1 or (len(numbers) == 1 and not any(isinstance(s, Tensor) for s in steps)):
        return steps[0]
    whole = [
        torch.as_tensor(s, dtype=v.dtype, device=v.device).expand_as(v)
        for s, v in zip(steps, values, strict=True)
    ]
    return torch.cat(whole, dim=1)


def flat(tensor: Tensor, like: Tensor) -> Tensor:
    """View a tensor as 1-D in the storage order of `like`; a copy where its own order differs.

    like: dense, of the same shape.
    """
    if tensor.stride() != like.stride():
        tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
    return tensor.as_strided((tensor.numel(),), (1,))


def is_dense(tensor: Tensor) -> bool:
    """Say whether the entries fill one block of memory, each once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def most_entries(device_type: str) -> int:
    """Return how many entries a batch has at most on a type of device."""
    return BATCH_ENTRIES.get(device_type, 2**24)
