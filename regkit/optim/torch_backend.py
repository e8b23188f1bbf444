"""The prox by torch: of whatever penalty, in whatever metric, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from regkit.optim.batch import Batch, Step, beside
from regkit.optim.metric import Metric
from regkit.optim.plan import Chain, Group
from regkit.penalties.penalty import WeightPenalty


def apply_entries(
    chain: Chain, group: Group, batch: Batch, metric: Metric, taken: Tensor | None
) -> None:
    """Apply penalties to entries, one after the other.

    taken: 1, or 0 where a loss scaler skips the step; None where it cannot.
    """
    rows = batch.values()
    step = None
    for penalty in chain:
        if penalty.decoupled:
            rows = penalty.prox(rows, _unless_skipped(group["lr"], taken))
        else:
            if step is None:
                step = _unless_skipped(metric(group, batch), taken)
            rows = penalty.prox(rows, step)
    batch.write(rows)


def apply_rows(
    penalty: WeightPenalty,
    batches: Sequence[tuple[Group, Batch]],
    metric: Metric,
    taken: Tensor | None,
    num_steps: int,
) -> None:
    """Apply a penalty to groups, of which each batch holds a part.

    num_steps: number of this step.
    """
    values = [batch.values() for _, batch in batches]
    steps = [_unless_skipped(metric(g, batch), taken) for g, batch in batches]
    rows = torch.cat(values, dim=1) if len(values) > 1 else values[0]
    step = beside(steps, values)
    if penalty.joint:
        rows = _jointly(penalty, rows, step, batches[0][1], num_steps)
    else:
        rows = penalty.prox(rows, step)
    parts = rows.split([v.shape[1] for v in values], dim=1)
    for (_, batch), part in zip(batches, parts, strict=True):
        batch.write(part)


def _jointly(
    penalty: WeightPenalty, rows: Tensor, step: Step, batch: Batch, num_steps: int
) -> Tensor:
    """Take the move again in a scalar metric, and the prox at every `every`-th step.

    The scalar is the root mean square of the diagonal, as if the second moment were kept once
    for the whole matrix (Zhang et al., Adam-mini, ICLR 2025, algorithm 2).
    """
    (part,) = batch.slices
    if isinstance(step, Tensor) and step.ndim > 0:
        assert part.before is not None
        old = part.rows(part.before).to(rows.dtype)
        moved = step > 0
        inverse = torch.where(moved, 1 / step, 0.0)
        scalar = torch.where(moved.any(), inverse.square().mean().rsqrt(), 0.0)
        rows = torch.where(moved, old - (old - rows) * inverse * scalar, rows)
        step = scalar
    every = getattr(penalty, "every", 1)
    return penalty.prox(rows, step * every) if num_steps % every == 0 else rows


def at_strength(chain: Chain, strength: float | None) -> Chain:
    """Return the penalties at this strength; without one, only the constraints."""
    if strength is None:
        return tuple(p for p in chain if p.constraint)
    return tuple(p.at(strength) for p in chain)


def _unless_skipped(step: Step, taken: Tensor | None) -> Step:
    """Make the step 0, with which a prox changes nothing, where the scaler skipped it."""
    return step if taken is None else step * taken
