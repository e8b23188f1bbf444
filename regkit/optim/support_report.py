"""How settled the zeros are: how many flip in a step, and how far the support is that of before."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkit.ops.gate import Gate
from regkit.optim.gradient_averages import SAMPLE_INTERVAL
from regkit.optim.support import Support, gates_open_at
from regkit.structure.distributed import all_reduce_counts, placement

# Steps between samples of what flips in one; it is prime to the others, so that all come round.
FLIP_INTERVAL = 31
# Steps between two comparisons of supports, each with that of SAMPLE_INTERVAL steps before it.
# In five of them one has gates open within, as often as any SAMPLE_INTERVAL steps do.
OVERLAP_INTERVAL = 30
# Samples that a report goes back, about 200 steps each.
FLIP_SAMPLES = 10
OVERLAP_SAMPLES = 5
# Columns of a sample of a step: entries, and those of them that flipped in it.
TOTAL, FLIPS = range(2)
# Columns of a sample of an overlap: zeros, zeros that should wake, entries that are alive now and
# were before, or one of the two.
ZERO, WAKES, BOTH, EITHER = range(4)

Runs = Iterator[tuple[Tensor, int, Tensor, Tensor]]


class SupportReport(NamedTuple):
    """How settled the zeros are of penalties that make them; shares of the entries they act on.

    flips: went from zero to not zero, or back, in one step. jaccard: of the entries that are not
    zero now or were not ten steps before, those that both holds for. should_wake: of the zeros,
    those that the averaged gradient says to be none. Means over about the last 200 steps.
    """

    flips: float
    jaccard: float
    should_wake: float

    @property
    def is_settled(self) -> bool:
        """Say whether zeros stay: 0.05 % flip in a step, and 98 % are the same ten steps on."""
        return self.flips <= 5e-4 and self.jaccard >= 0.98


class SupportCounts:
    """The last samples of one optimizer's support; each is a sum over all gates and ranks."""

    def __init__(self) -> None:
        self._flips: deque[Tensor] = deque(maxlen=FLIP_SAMPLES)
        self._overlaps: deque[Tensor] = deque(maxlen=OVERLAP_SAMPLES)

    def add_flips(self, support: Support, before: Sequence[Tensor], step: int) -> None:
        """Add what flipped in a step (a collective for shards); waits for no GPU.

        before: snapshot of the support, of before the step.
        """
        # Where gates open much flips at once: such a step stands for itself, any other for many.
        weight = 1 if gates_open_at(step) else FLIP_INTERVAL

        def count(now: Tensor, old: Tensor) -> list[Tensor]:
            flips = _num_ones((now ^ old) & int(Gate.ZERO))
            return [torch.full_like(flips, now.numel() * weight), flips * weight]

        self._flips.extend(_sums(support.runs(before), count))

    def add_overlap(self, support: Support) -> None:
        """Add how the support overlaps with that of its last `mark_living` (a collective)."""

        def count(now: Tensor, _: Tensor) -> list[Tensor]:
            zero, seen = now & int(Gate.ZERO), (now & int(Gate.SEEN)) >> 2
            gone, due = _num_ones(zero & seen), _num_ones((now & int(Gate.DUE)) >> 4)
            num_seen, num_zero = _num_ones(seen), _num_ones(zero)
            return [num_zero, due, num_seen - gone, now.numel() - num_zero + gone]

        self._overlaps.extend(_sums(support.runs(), count))

    def totals(self) -> tuple[list[float], list[float]] | None:
        """Return the sums of the samples' columns; None before the first. Waits for a GPU."""
        if not (self._flips and self._overlaps):
            return None
        flips, overlaps = (
            torch.stack([s.to(samples[-1].device) for s in samples]).sum(0).tolist()
            for samples in (self._flips, self._overlaps)
        )
        return flips, overlaps

    def state_dict(self) -> dict[str, Any]:
        """Return the samples."""
        return {"flips": list(self._flips), "overlaps": list(self._overlaps)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over saved samples."""
        self._flips.extend(saved["flips"])
        self._overlaps.extend(saved["overlaps"])


def report_of(counts: Sequence[SupportCounts]) -> SupportReport | None:
    """Return how settled the zeros of several optimizers are; None before ten steps or so."""
    found = [totals for one in counts if (totals := one.totals()) is not None]
    if not found:
        return None
    flips, overlaps = (
        [sum(column) for column in zip(*rows, strict=True)] for rows in zip(*found, strict=True)
    )
    return SupportReport(
        flips[FLIPS] / max(flips[TOTAL], 1),
        overlaps[BOTH] / overlaps[EITHER] if overlaps[EITHER] else 1.0,
        overlaps[WAKES] / max(overlaps[ZERO], 1),
    )


def flips_counted_at(step: int) -> bool:
    """Say whether flips are counted in this step: where gates open, and in a few others."""
    return gates_open_at(step) or step % FLIP_INTERVAL == 0


def supports_compared_at(step: int) -> bool:
    """Say whether supports are compared after this step."""
    return step % OVERLAP_INTERVAL == SAMPLE_INTERVAL


def _sums(runs: Runs, count: Callable[[Tensor, Tensor], list[Tensor]]) -> list[Tensor]:
    """Return one row: what is counted in all runs and ranks, units by their size; [] without any.

    count: gives the columns for gates, as they are and as they were.
    """
    rows: dict[Any, Tensor] = {}
    leads: dict[Any, Tensor] = {}
    for lead, size, now, old in runs:
        kind = placement(lead), size
        found = torch.stack(count(now, old)).double() * size
        rows[kind] = found + rows[kind] if kind in rows else found
        leads.setdefault(kind, lead)
    if not rows:
        return []
    where = next(iter(rows.values())).device
    counts = torch.stack([row.to(where) for row in rows.values()])
    return [all_reduce_counts(counts, list(leads.values())).sum(0)]


def _num_ones(bits: Tensor) -> Tensor:
    """Return the sum of bytes that are 0 or 1, six times as fast as torch does."""
    flat_bits = bits.contiguous().view(-1)
    whole = flat_bits.numel() // 1000 * 1000
    if whole == 0:
        return flat_bits.sum()
    # Eight sums side by side in each number, of which none is too large for a byte.
    packed = flat_bits[:whole].view(torch.int64).view(-1, 125).sum(1)
    return packed.view(torch.uint8).sum() + flat_bits[whole:].sum()
