"""The proximal step: right after every real update, in the metric of the optimizer that made it."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.groups import Bundle
from regkit.optim.batch import Batch, Step, beside, plain
from regkit.optim.metric import (
    METRICS,
    Metric,
    euclidean,
    metric_of,
    momentum_after,
    momentum_at_rest,
)
from regkit.optim.plan import Chain, Group, Move, entry_batches, row_batches
from regkit.penalties.penalty import WeightPenalty
from regkit.strength import Strength

# How often a step is tried to find the strength that ends it with a wanted density.
NUM_TRIALS = 12


class ProximalStep:
    """Apply the penalties of each parameter after every real step of one optimizer.

    Hangs on `optimizer.register_step_post_hook`, so a step that a loss scaler skips is none; an
    optimizer that has to do something after the prox takes it as its attribute `proximal`.
    Parameters without a gradient were not moved and are left alone, and so is a bundle of which
    any parameter has none. Nothing here waits for a GPU, unless `strength` changes with time and a
    loss scaler leaves the skipping to a fused optimizer.

    chains: the element-wise penalties of each parameter, in the order in which they apply.
    bundles: the group penalties, which apply after them.
    strength: what every `lam` is multiplied by at a real step, counted from 1; None: the penalties
        are off, and zeros stay zero. Constraints hold always.
    Raises: InputError when the optimizer holds none of these parameters or has a step already.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        chains: Mapping[nn.Parameter, Chain],
        bundles: Sequence[tuple[WeightPenalty, Bundle]] = (),
        strength: Strength | None = None,
    ) -> None:
        held = {p for group in optimizer.param_groups for p in group["params"]}
        penalised = [*chains, *(p.parameter for _, bundle in bundles for p in bundle.pieces)]
        self.members = list(dict.fromkeys(penalised))
        _check(optimizer, self.members, held, bundles)
        self.optimizer = optimizer
        self.chains = chains
        self.bundles = bundles
        self.strength = strength
        self.num_steps = 0
        self.seconds = 0.0
        # Answers of the momentum buffers; those that are filled already are taken to be at rest.
        self.momentum = {
            p: momentum_at_rest(group)
            for group in optimizer.param_groups
            for p in group["params"]
            if optimizer.state.get(p, {}).get("momentum_buffer") is not None
        }
        self.metric = _metric_or_warning(optimizer)
        self._before: dict[nn.Parameter, Tensor] = {}
        self._joint = [p.parameter for pen, b in bundles if pen.joint for p in b.pieces]
        self._handles = [optimizer.register_step_pre_hook(self._before_step)]
        if hasattr(optimizer, "proximal"):
            optimizer.proximal = lambda: self._after_step(optimizer, (), {})  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def detach(self) -> None:
        """Take the step off its optimizer."""
        for handle in self._handles:
            handle.remove()
        if hasattr(self.optimizer, "proximal"):
            self.optimizer.proximal = None  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Keep the weights that the next move starts from, where something depends on them."""
        frozen = self._strength(self.num_steps + 1) is None
        self._before = {p: p.detach().clone() for p in (self.members if frozen else self._joint)}

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        began = time.perf_counter()
        # Set by a loss scaler during the call of a fused optimizer, which decides on the device.
        taken: Tensor | None = None
        found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            if (found_inf.device.type == "cpu" or self.strength is not None) and found_inf.item():
                return
            taken = 1.0 - found_inf
        self.num_steps += 1
        moves = self._moves()
        strength = self._strength(self.num_steps)
        bounds = None if self.strength is None else self.strength.bounds(self.num_steps)
        if strength is None or bounds is None or not moves:
            self._take(moves, strength, taken)
        else:
            self._meet(bounds, moves, strength, taken)
        self.seconds += time.perf_counter() - began

    def _take(
        self, moves: Mapping[nn.Parameter, Move], strength: float | None, taken: Tensor | None
    ) -> None:
        """Apply all penalties at this strength; without one, let zeros stay zero."""
        for chain, group, batch in entry_batches(self.chains, moves):
            if now := at_strength(chain, strength):
                self._apply(now, group, batch, taken)
        for penalty, batches in row_batches(self.bundles, moves):
            for now in at_strength((penalty,), strength):
                self._apply_rows(now, batches, taken)
        if strength is None:
            for p in moves:
                p.mul_(self._before[p] != 0)

    def _meet(
        self,
        bounds: tuple[float, float],
        moves: Mapping[nn.Parameter, Move],
        strength: float,
        taken: Tensor | None,
    ) -> None:
        """Apply all penalties at the strength that leaves a share of non-zeros within bounds.

        A stronger penalty leaves fewer: the logarithm of the strength is bracketed, then halved.
        """
        assert self.strength is not None
        start = {p: p.detach().clone() for p in moves}
        weak, strong = 0.0, math.inf
        best, found = math.inf, strength
        for _ in range(NUM_TRIALS):
            self._take(moves, strength, taken)
            share = _density(list(moves))
            excess = max(share - bounds[1], 0.0) + min(share - bounds[0], 0.0)
            if abs(excess) < best:
                best, found = abs(excess), strength
            if best <= bounds[0] / 1000:
                break
            weak, strong = (strength, strong) if excess > 0 else (weak, strength)
            if strong == math.inf:
                strength = 4 * strength
            else:
                strength = math.sqrt(weak * strong) if weak > 0 else strength / 4
            for p, values in start.items():
                p.copy_(values)
        else:
            self._take(moves, found, taken)
        if found != strength or best > 0 or weak > 0 or strong < math.inf:
            self.strength.found(found)

    def _strength(self, step: int) -> float | None:
        return 1.0 if self.strength is None else self.strength(step)

    def _moves(self) -> dict[nn.Parameter, Move]:
        """Return what moved the penalised parameters; those without a gradient stood still."""
        moves = {}
        wanted = set(self.members)
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p not in wanted or p.grad is None or p.numel() == 0:
                    continue
                self.momentum[p] = momentum_after(group, self.momentum.get(p))
                if isinstance(group["lr"], Tensor) or group["lr"] != 0:
                    before = self._before.get(p)
                    moves[p] = Move(group, self.optimizer.state[p], self.momentum[p], before)
        return moves

    def _apply(self, chain: Chain, group: Group, batch: Batch, taken: Tensor | None) -> None:
        rows = batch.values()
        step = None
        for penalty in chain:
            if penalty.decoupled:
                rows = penalty.prox(rows, _unless_skipped(group["lr"], taken))
            else:
                if step is None:
                    step = _unless_skipped(self.metric(group, batch), taken)
                rows = penalty.prox(rows, step)
        batch.write(rows)

    def _apply_rows(
        self,
        penalty: WeightPenalty,
        batches: Sequence[tuple[Group, Batch]],
        taken: Tensor | None,
    ) -> None:
        values = [batch.values() for _, batch in batches]
        steps = [_unless_skipped(self.metric(g, batch), taken) for g, batch in batches]
        rows = torch.cat(values, dim=1) if len(values) > 1 else values[0]
        step = beside(steps, values)
        if penalty.joint:
            rows = self._jointly(penalty, rows, step, batches[0][1])
        else:
            rows = penalty.prox(rows, step)
        parts = rows.split([v.shape[1] for v in values], dim=1)
        for (_, batch), part in zip(batches, parts, strict=True):
            batch.write(part)

    def _jointly(self, penalty: WeightPenalty, rows: Tensor, step: Step, batch: Batch) -> Tensor:
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
        return penalty.prox(rows, step * every) if self.num_steps % every == 0 else rows


def at_strength(chain: Chain, strength: float | None) -> Chain:
    """Return the penalties at this strength; without one, only the constraints."""
    if strength is None:
        return tuple(p for p in chain if p.constraint)
    return tuple(p.at(strength) for p in chain)


def _density(parameters: Sequence[Tensor]) -> float:
    nonzero = torch.stack([plain((p != 0).sum()) for p in parameters]).sum()
    return float(nonzero) / sum(p.numel() for p in parameters)


def _unless_skipped(step: Step, taken: Tensor | None) -> Step:
    """Make the step 0, with which a prox changes nothing, where the scaler skipped it."""
    return step if taken is None else step * taken


def _check(
    optimizer: Optimizer,
    members: Sequence[nn.Parameter],
    held: set[nn.Parameter],
    bundles: Sequence[tuple[WeightPenalty, Bundle]],
) -> None:
    if held.isdisjoint(members):
        raise InputError(
            f"attach got a {type(optimizer).__name__} that holds none of the penalised "
            "parameters. Make it from the parameters of the very model that is penalised."
        )
    for _, bundle in bundles:
        inside = [piece.name for piece in bundle.pieces if piece.parameter in held]
        outside = [piece.name for piece in bundle.pieces if piece.parameter not in held]
        if inside and outside:
            raise InputError(
                f"attach got a {type(optimizer).__name__} that holds {inside[0]!r} but not "
                f"{outside[0]!r}, which live and die together. Give them to one optimizer, or "
                "freeze the latter (requires_grad_(False)) before the Regularizer is made."
            )
    joint = [type(penalty).__name__ for penalty, _ in bundles if penalty.joint]
    if joint and hasattr(optimizer, "proximal"):
        raise InputError(
            f"{joint[0]} needs one step for a whole matrix, and {type(optimizer).__name__} sums "
            "its steps over a stage. Use SGD, Adam or AdamW."
        )
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), ProximalStep) for hook in hooks):
        raise InputError(
            f"This {type(optimizer).__name__} has a regularizer attached already. Detach it "
            "first, or give one Regularizer all penalties."
        )


def _metric_or_warning(optimizer: Optimizer) -> Metric:
    metric = metric_of(optimizer)
    if metric is None:
        warnings.warn(
            f"regkit does not know the metric of {type(optimizer).__name__}: the prox is taken "
            "with its learning rate as the step, so training converges to something else than "
            "the minimiser of the stated objective where this optimizer rescales or averages "
            f"gradients. Known: {', '.join(known.__name__ for known in METRICS)}.",
            stacklevel=4,
        )
        return euclidean
    return metric
