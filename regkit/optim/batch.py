"""Many parameters as one flat vector, so that a step costs few operations however many there are.

Entries stand in storage order: an element-wise penalty does not care, and no memory format costs a
copy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Step = float | Tensor


@dataclass(frozen=True)
class Slice:
    """A run of entries of one dense parameter, in its storage order.

    values: the entries themselves, a flat view that is written to.
    start: index of the first entry.
    state: what the optimizer keeps for this parameter.
    momentum: answer of its momentum buffer to a constant unit gradient.
    """

    parameter: Tensor
    values: Tensor
    start: int
    state: dict[str, Any]
    momentum: float


@dataclass(frozen=True)
class Batch:
    """Slices that are updated together."""

    slices: Sequence[Slice]

    def values(self) -> Tensor:
        """Return all entries, in float32 at least; possibly a view, not to be written to."""
        return self._joined([s.values for s in self.slices])

    def write(self, rows: Tensor) -> None:
        """Write the entries back, in few launches."""
        values = [s.values for s in self.slices]
        parts = rows.split([v.numel() for v in values])
        torch._foreach_copy_(values, list(parts))  # pyright: ignore[reportPrivateImportUsage]: no public name

    def flat(self, key: str) -> Tensor:
        """Return a state tensor of all entries; possibly a view, not to be written to."""
        return self._joined(
            [
                flat(local(s.state[key]), s.parameter)[s.start :][: s.values.numel()]
                for s in self.slices
            ]
        )

    def scalar(self, key: str) -> Step:
        """Return a state scalar: a number where all agree, else a tensor, one number an entry.

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
        return self._joined(
            [
                (n if isinstance(n, Tensor) else torch.full_like(s.values, n)).expand_as(s.values)
                for n, s in zip(numbers, self.slices, strict=True)
            ]
        )

    @staticmethod
    def _joined(parts: Sequence[Tensor]) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return whole.to(torch.promote_types(whole.dtype, torch.float32))


def packed(slices: Sequence[Slice], most: int) -> Iterator[Batch]:
    """Cut slices into batches of at most `most` entries, splitting the long ones."""
    batch: list[Slice] = []
    room = most
    for s in slices:
        for start in range(0, s.values.numel(), most):
            run = s.values[start : start + most]
            if batch and run.numel() > room:
                yield Batch(batch)
                batch, room = [], most
            batch.append(replace(s, values=run, start=start))
            room -= run.numel()
    if batch:
        yield Batch(batch)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, and any other tensor as it is."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local is not None else tensor


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
