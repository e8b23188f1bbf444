"""The prox by torch: of whatever penalty, in whatever metric, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from regkit.ops.gate import keep_zeros, recorded
from regkit.optim.batching import Batch, beside
from regkit.optim.step_size import Number, StepSizeOf
from regkit.penalties.penalty import WeightPenalty


def prox_entries(
    penalties: Sequence[WeightPenalty], batch: Batch, step_size: StepSizeOf, taken: Tensor | None
) -> None:
    """Apply penalties to entries, one after the other; the weights are changed in place.

    taken: 1, or 0 where a loss scaler skips the step; None where it cannot.
    """
    rows = batch.values()
    step = None
    for penalty in penalties:
        if penalty.decoupled:
            rows = penalty.prox(rows, _unless_skipped(batch.lr, taken))
        else:
            if step is None:
                step = _unless_skipped(batch.step(step_size), taken)
            rows = penalty.prox(rows, step)
    gates = batch.gates()
    if gates is None:
        batch.write(rows)
        return
    rows = keep_zeros(rows, gates).to(batch.slices[0].values.dtype)
    batch.write(rows)
    batch.write_gates(recorded(gates, rows == 0))


def prox_rows(
    penalty: WeightPenalty,
    batches: Sequence[Batch],
    step_size: StepSizeOf,
    taken: Tensor | None,
    num_steps: int,
    is_last: bool,
) -> None:
    """Apply a penalty to groups, of which each batch holds a part; changed in place.

    num_steps: number of this step. is_last: training ends with it.
    """
    values = [batch.values() for batch in batches]
    steps = [_unless_skipped(batch.step(step_size), taken) for batch in batches]
    rows = torch.cat(values, dim=1) if len(values) > 1 else values[0]
    step = beside(steps, values)
    if penalty.joint:
        every = getattr(penalty, "every", 1)
        since = num_steps % every or every  # the last step takes the prox for those before it
        rows = _jointly(penalty, rows, step, batches[0], since if is_last or since == every else 0)
    else:
        rows = penalty.prox(rows, step)
    gates = batches[0].gates()
    if gates is not None:
        rows = keep_zeros(rows, gates).to(batches[0].slices[0].values.dtype)
        batches[0].write_gates(recorded(gates, (rows == 0).all(1)))
    parts = rows.split([v.shape[1] for v in values], dim=1)
    for batch, part in zip(batches, parts, strict=True):
        batch.write(part)


def _jointly(
    penalty: WeightPenalty, rows: Tensor, step: Number, batch: Batch, times: int
) -> Tensor:
    """Take the move again in a scalar metric, and the prox of so many steps; of 0, none.

    The scalar is the root mean square of the diagonal, as if the second moment were kept once
    for the whole matrix (Zhang et al., Adam-mini, ICLR 2025, algorithm 2).
    """
    (part,) = batch.slices
    if isinstance(step, Tensor) and step.ndim > 0:
        assert part.move.before is not None
        old = part.rows(part.move.before).to(rows.dtype)
        moved = step > 0
        inverse = torch.where(moved, 1 / step, 0.0)
        scalar = torch.where(moved.any(), inverse.square().mean().rsqrt(), 0.0)
        rows = torch.where(moved, old - (old - rows) * inverse * scalar, rows)
        step = scalar
    return penalty.prox(rows, step * times) if times else rows


def _unless_skipped(step: Number, taken: Tensor | None) -> Number:
    """Make the step 0, with which a prox changes nothing, where the scaler skipped it."""
    return step if taken is None else step * taken
