"""Many parameters as one vector, or as one matrix of rows, so that a step costs few operations.

A vector holds the entries in storage order: an element-wise penalty does not care, and no memory
format costs a copy. A matrix holds a group a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from regkit.groups import View
from regkit.ranks import local

Step = float | Tensor


@dataclass(frozen=True)
class Slice:
    """A run of entries, or of groups, of one parameter.

    parameter: this rank's values.
    view: how a tensor of its shape is seen; None for its entries in storage order (it is dense
        then).
    start, stop: the run, along the first axis of the view.
    state: what the optimizer keeps for this parameter.
    momentum: answer of its momentum buffer to a constant unit gradient.
    before: the parameter before the optimizer moved it, where that was kept.
    """

    parameter: Tensor
    view: View | None
    start: int
    stop: int
    state: dict[str, Any]
    momentum: float
    before: Tensor | None = None

    def seen(self, tensor: Tensor) -> Tensor:
        """Return the run as it lies in memory: of the parameter a view, which is written to."""
        whole = flat(tensor, self.parameter) if self.view is None else self.view(tensor)
        return whole[self.start : self.stop]

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the run as a vector, or as a matrix (groups, size)."""
        seen = self.seen(tensor)
        if self.view is None:
            return seen
        return seen.reshape(prod(seen.shape[: self.view.lead]), -1)

    def between(self, start: int, stop: int) -> "Slice":
        """Return a part of the run."""
        return replace(self, start=start, stop=stop)

    @property
    def per_index(self) -> int:
        """Number of entries for each place along the first axis of the view."""
        if self.view is None:
            return 1
        return self.parameter.numel() // max(self.view.shape[self.view.order[0]], 1)


@dataclass(frozen=True)
class Batch:
    """Slices that are updated together."""

    slices: Sequence[Slice]

    def values(self) -> Tensor:
        """Return all entries, in float32 at least; possibly a view, not to be written to."""
        return self._joined([s.rows(s.parameter) for s in self.slices])

    def write(self, rows: Tensor) -> None:
        """Write the entries back, in few launches."""
        targets = [s.seen(s.parameter) for s in self.slices]
        leads = [1 if s.view is None else s.view.lead for s in self.slices]
        counts = [prod(t.shape[:lead]) for t, lead in zip(targets, leads, strict=True)]
        parts = [p.reshape(t.shape) for p, t in zip(rows.split(counts), targets, strict=True)]
        # A prox that changed nothing may have returned the very view that it was given.
        pairs = [
            (t, p) for t, p in zip(targets, parts, strict=True) if t.data_ptr() != p.data_ptr()
        ]
        if pairs:
            targets, parts = map(list, zip(*pairs, strict=True))
            torch._foreach_copy_(targets, parts)  # pyright: ignore[reportPrivateImportUsage]: no public name

    def flat(self, key: str) -> Tensor:
        """Return a state tensor, laid out as `values`; possibly a view, not to be written to."""
        return self._joined([s.rows(local(s.state[key])) for s in self.slices])

    def scalar(self, key: str) -> Step:
        """Return a state scalar: a number where all agree, else a tensor, one number a row.

        Scalars on a GPU are never compared: that would wait for it.
        """
        return self._agreed([_number(s.state[key]) for s in self.slices])

    @property
    def momentum(self) -> Step:
        """Return the answer of the momentum buffers, as `scalar` does."""
        return self._agreed([s.momentum for s in self.slices])

    def _agreed(self, numbers: Sequence[Step]) -> Step:
        first = numbers[0]
        if len(numbers) == 1 or (not isinstance(first, Tensor) and set(numbers) == {first}):
            return first
        parts = []
        for number, s in zip(numbers, self.slices, strict=True):
            rows = s.rows(s.parameter)
            shape = (len(rows),) if rows.ndim == 1 else (len(rows), 1)
            number = number if isinstance(number, Tensor) else torch.tensor(number)
            parts.append(number.to(rows.device, rows.dtype).expand(shape))
        return self._joined(parts)

    @staticmethod
    def _joined(parts: Sequence[Tensor]) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return whole.to(torch.promote_types(whole.dtype, torch.float32))


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


def beside(steps: Sequence[Step], values: Sequence[Tensor]) -> Step:
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


def _number(value: Any) -> Step:
    if isinstance(value, Tensor):
        return value.item() if value.device.type == "cpu" else value
    return float(value)
