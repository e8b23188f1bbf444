"""The proximal step: right after every real update, in the metric of the optimizer that made it."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.groups import Bundle
from regkit.optim.density_search import density, meet
from regkit.optim.fused_optimizers import FusedOptimizer
from regkit.optim.metric import (
    METRICS,
    Metric,
    euclidean,
    form_of,
    metric_of,
    momentum_after,
    momentum_at_rest,
)
from regkit.optim.plan import Chain, Move, entry_batches
from regkit.optim.sharding import divide, group_batches
from regkit.optim.step_plan import FIRSTS, Passes, plan, signature
from regkit.optim.torch_backend import apply_entries, apply_rows, at_strength
from regkit.penalties.penalty import WeightPenalty
from regkit.strength import ALL, Bounds, Strength


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
        self._wanted = set(self.members)
        _check(optimizer, self.members, held, bundles)
        self.optimizer = optimizer
        self.bind(chains, bundles)
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
        self.form = form_of(optimizer)
        # What an update that was taken over has left to do after it.
        self._begun: tuple[dict[nn.Parameter, Move], Passes | None] | None = None
        self._before: dict[nn.Parameter, Tensor] = {}
        self._joint = [p.parameter for pen, b in bundles if pen.joint for p in b.pieces]
        self._handles = [optimizer.register_step_pre_hook(self._before_step)]
        if hasattr(optimizer, "proximal"):
            optimizer.proximal = lambda: self._after_step(optimizer, (), {})  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        if isinstance(optimizer, FusedOptimizer):
            optimizer.take_over = self._take_over

    def bind(
        self,
        chains: Mapping[nn.Parameter, Chain],
        bundles: Sequence[tuple[WeightPenalty, Bundle]],
    ) -> None:
        """Take the same penalties, of other strengths, from now on."""
        self.chains = chains
        self.bundles, self.shared = divide(bundles)
        self._passes: dict[str, Passes] = {}

    def detach(self) -> None:
        """Take the step off its optimizer."""
        for handle in self._handles:
            handle.remove()
        if hasattr(self.optimizer, "proximal"):
            self.optimizer.proximal = None  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(self.optimizer, FusedOptimizer):
            self.optimizer.take_over = None

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Keep the weights that the next move starts from, where something depends on them."""
        frozen = self._aim(self.num_steps + 1)[0] is None
        self._before = {p: p.detach().clone() for p in (self.members if frozen else self._joint)}

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        began = time.perf_counter()
        # Set by a loss scaler during the call of a fused optimizer, which decides on the device.
        skip: Tensor | None = getattr(optimizer, "found_inf", None)
        if skip is not None and (skip.device.type == "cpu" or self.strength is not None):
            if skip.item():
                return
            skip = None
        self.num_steps += 1
        strength, bounds = self._aim(self.num_steps)
        moves, passes = self._begun or (_stirring(self._moves()), None)
        self._begun = None
        if strength is None or bounds is None or not moves:
            self._take(moves, strength, skip, passes)
        else:
            self._meet(bounds, moves, strength)
        self.seconds += time.perf_counter() - began

    def _take_over(self, update: str) -> set[Tensor]:
        """Update what kernels serve, together with the prox, and return which.

        Nothing while the strength is searched for or the support is frozen: both need the point
        that the optimizer moved to.
        """
        self._begun = None
        scaling = [getattr(self.optimizer, key, None) for key in ("found_inf", "grad_scale")]
        strength, bounds = self._aim(self.num_steps + 1)
        if strength is None or bounds is not None or self.form is None:
            return set()
        if self.strength is not None and scaling[0] is not None:
            return set()
        began = time.perf_counter()
        moves = self._moves(every=True)
        mine = {p: m for p, m in _stirring(moves).items() if p in self._wanted}
        self._begun = (mine, None)
        passes = self._planned(moves, strength, update)
        if not passes.updated or not all([one.ready() for one in passes.passes]):
            return set()
        if passes.counts:
            taken = 1.0 if scaling[0] is None else 1.0 - scaling[0]
            torch._foreach_add_(list(passes.counts), taken)  # pyright: ignore[reportPrivateImportUsage]: no public name
        for one in passes.passes:
            one(self.form, self.momentum, strength, *scaling)
            for p, first in one.fresh.items():
                self.optimizer.state[p].setdefault(FIRSTS[update], first)
        self._begun = (mine, replace(passes, passes=()))
        self.seconds += time.perf_counter() - began
        return set(passes.updated)

    def _take(
        self,
        moves: Mapping[nn.Parameter, Move],
        strength: float | None,
        skip: Tensor | None,
        passes: Passes | None = None,
        tallies: Sequence[Tensor] = (),
    ) -> None:
        """Apply all penalties at this strength; without one, let zeros stay zero.

        passes: what an update that was taken over has left; default: all.
        tallies: for each pass, room for what it counts.
        """
        if passes is None:
            passes = self._planned(moves, strength)
        for one, tally in zip_longest(passes.passes, tallies):
            assert self.form is not None
            assert strength is not None
            one(self.form, self.momentum, strength, skip, tally=tally)
        taken = None if skip is None else 1.0 - skip
        for chain, group, batch in entry_batches(passes.chains, moves):
            if now := at_strength(chain, strength):
                apply_entries(now, group, batch, self.metric, taken)
        parts = passes.bundles, self.shared
        for now, batches in group_batches(*parts, moves, self.metric, strength):
            apply_rows(now, batches, self.metric, taken, self.num_steps)
        if strength is None:
            for p in moves:
                p.mul_(self._before[p] != 0)

    def _planned(
        self, moves: Mapping[nn.Parameter, Move], strength: float | None, update: str = "none"
    ) -> Passes:
        """Return the passes over what moved: those of the last step, if they serve again."""
        if strength is None or self.form is None:
            return Passes((), self.chains, self.bundles)
        known = self._passes.get(update)
        if known is None or known.signature != signature(moves, self.form, update):
            known = plan(self.chains, self.bundles, moves, self.form, update)
            self._passes[update] = known
        return known

    def _aim(self, step: int) -> tuple[float | None, Bounds | None]:
        """Return the strength of a step, and the densities that it has to end with."""
        if self.strength is None:
            return 1.0, None
        return self.strength(step), self.strength.bounds(step)

    def _meet(self, bounds: Bounds, moves: Mapping[nn.Parameter, Move], strength: float) -> None:
        """Apply all penalties at the strengths that leave shares of non-zeros within bounds."""
        assert self.strength is not None
        start = {p: p.detach().clone() for p in moves}
        layers, passes = self.strength.layers, self._planned(moves, strength)
        counted = layers is None and passes.cover(moves)

        def attempt(factors: Mapping[str, float]) -> Mapping[str, float]:
            for p, values in start.items():
                p.copy_(values)
            if layers is not None:
                layers.weigh(factors)
                self._take(moves, strength, None)
                return layers.shares()
            tallies = [one.room() for one in passes.passes] if counted else []
            self._take(moves, factors[ALL], None, passes, tallies)
            return {ALL: density(list(moves), tallies)}

        found, searched = meet(bounds, self.strength.factors(), attempt)
        if searched:
            self.strength.found(found)

    def _moves(self, every: bool = False) -> dict[nn.Parameter, Move]:
        """Return what moves the penalised parameters, or every one; without a gradient none is."""
        moves = {}
        for group in self.optimizer.param_groups:
            heavy = group.get("momentum", 0.0) > 0
            for p in group["params"]:
                if p.grad is None or p.numel() == 0 or not (every or p in self._wanted):
                    continue
                self.momentum[p] = momentum_after(group, self.momentum.get(p))
                state = self.optimizer.state[p]
                fresh = heavy and state.get("momentum_buffer") is None
                before = self._before.get(p)
                moves[p] = Move(group, state, self.momentum[p], before, fresh)
        return moves


def _stirring(moves: Mapping[nn.Parameter, Move]) -> dict[nn.Parameter, Move]:
    """Leave out what a learning rate of 0 has not moved."""
    return {p: m for p, m in moves.items() if isinstance(m.group["lr"], Tensor) or m.group["lr"]}


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
