"""The proximal step: right after every real update, with the step size of its optimizer."""

import math
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.optim.batching import entry_batches
from regkit.optim.density_control import (
    FIRST_TRIALS,
    GLOBAL,
    Bounds,
    Densities,
    DensityController,
    Factors,
    solve,
)
from regkit.optim.fused_optimizers import FusedOptimizer
from regkit.optim.parts import Chain, Part, Scale, active
from regkit.optim.schedule import Progress, Schedule
from regkit.optim.sharding import divide, group_batches
from regkit.optim.step_plan import FIRST_MOMENT_KEYS, PlanCache, StepPlan, build_plan, signature
from regkit.optim.step_size import (
    AVERAGED_ALREADY,
    AVERAGES,
    SEEN_BY_THEIR_MOVE,
    Move,
    StepSizeOf,
    gradient,
    learning_rate,
    momentum_gain,
    momentum_gain_at_rest,
    step_size_of,
    warn_of_unknown,
)
from regkit.optim.support import INTERVAL, Support, interval_of, is_compared, is_sampled, is_weighed
from regkit.optim.torch_backend import prox_entries, prox_rows
from regkit.structure.distributed import local, summed, whole_rows

Moves = dict[nn.Parameter, Move]


@dataclass
class ProxState:
    """What a step needs again; it advances in `ProximalStep.finish` alone.

    num_steps: real steps so far. progress: of training, after the last of them.
    gains: momentum gains. num_moves: how often each parameter was moved. factors: of the last step.
    """

    num_steps: int = 0
    progress: float = 0.0
    gains: dict[nn.Parameter, float] = field(default_factory=dict)
    num_moves: Counter[nn.Parameter] = field(default_factory=Counter)
    factors: Factors = field(default_factory=Factors)


@dataclass(frozen=True)
class StepContext:
    """What is known of a step before the optimizer moves.

    progress: after the step; stride: what it adds to it.
    bounds: densities that it shall end with. keeps_zeros: zeros stay zero.
    skip: on a GPU, not 0 where a loss scaler skips the step; is_skipped: it does, and we know.
    firsts: parameters whose momentum buffer is still empty.
    before: weights before the move, where something is computed from them.
    nonzero: which weights are not zero, where zeros are kept.
    gates: before the step, where it is to be said what flips in it; else None.
    """

    progress: float
    stride: float
    factors: Factors
    bounds: Bounds | None
    keeps_zeros: bool
    skip: Tensor | None
    is_skipped: bool
    firsts: frozenset[nn.Parameter]
    before: Mapping[nn.Parameter, Tensor]
    nonzero: Mapping[nn.Parameter, Tensor]
    gates: Sequence[Tensor] | None


@dataclass(frozen=True)
class TargetResult:
    """A density that was asked for, and what there is.

    density: of the weights that the optimizer trains and a penalty chooses; with `layerwise`, of
        the layer that is furthest from the target.
    reason: why the target is not met; empty where it is.
    """

    target: float
    density: float
    reason: str = ""

    @property
    def is_met(self) -> bool:
        """Say whether the density is the target, to a twentieth of it, and 0.02 at most."""
        return abs(self.density - self.target) <= min(max(0.05 * self.target, 0.002), 0.02)


class ProximalStep:
    """Apply the penalties of each parameter after every real step of one optimizer.

    The optimizer calls `begin` before it moves and `finish` after it, through torch's step hooks;
    optimizers of this package call `fused_step` and `finish` themselves, from within. Parameters
    that did not move are left alone, and so is a group of which any trained parameter did not. A
    frozen parameter counts nowhere; once it is trained it is penalised. Nothing here waits for a
    GPU, unless a density is aimed at, which is read at every step; or a loss scaler leaves the
    skipping to a fused optimizer, and the schedule depends on progress or momentum is not at rest.

    chains: the element-wise penalties of each parameter, in the order in which they apply.
    parts: the group penalties, which apply after them.
    schedule: how strong they are; None: always as they say.
    progress: of training, given by whoever knows it.
    others: of other optimizers in the same training, which may have stopped when this one ends.
    Raises: InputError when the optimizer holds none of these parameters, and none is frozen that it
        may be given later; or when it has a step already.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        chains: Mapping[nn.Parameter, Chain],
        parts: Sequence[Part] = (),
        schedule: Schedule | None = None,
        progress: Progress | None = None,
        others: Sequence["ProximalStep"] = (),
    ) -> None:
        self.optimizer, self.chains, self.parts = optimizer, chains, parts
        self.others = others
        self.schedule = schedule or Schedule()
        self.progress = progress or Progress()
        grouped = (p for part in parts for p in part.parameters)
        self.members = dict.fromkeys([*chains, *grouped])
        _check(optimizer, list(self.members), parts)
        every = [part for chain in chains.values() for part in chain] + list(parts)
        self._zeroable = {p for one in every if one.penalty.sparsifies for p in one.parameters}
        self.step_size = _step_size_or_warning(optimizer)
        self.state = ProxState(factors=Factors(self.schedule.strength(0.0)))
        self.control = None
        if self.schedule.target_density is not None:
            self.control = DensityController(self.schedule)
        self.prox_seconds = 0.0
        self.plans = PlanCache()
        averaged = self.step_size in AVERAGED_ALREADY
        self.support = Support(holds=self.schedule.holds_zeros and not averaged)
        self._average_of = None if averaged else AVERAGES.get(self.step_size, gradient)
        self._divided: tuple[tuple[int, ...], Sequence[Part], Sequence[Part]] | None = None
        self._versions: dict[nn.Parameter, Any] = {}
        self._is_shut = False
        # Parameters whose momentum buffer has seen no gradient, not even one that was skipped.
        self._unbuffered: set[nn.Parameter] = set()
        self._stride = 0.0
        self._context: StepContext | None = None
        self._fused: tuple[Moves, StepPlan] | None = None
        kept = [p for part in parts if part.penalty.joint for p in part.parameters]
        self._kept = list(self.members) if self.step_size in SEEN_BY_THEIR_MOVE else kept
        self._handles = [optimizer.register_step_pre_hook(_uncompiled(self._before))]
        if hasattr(optimizer, "proximal_step"):
            optimizer.proximal_step = self  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self._handles.append(optimizer.register_step_post_hook(_uncompiled(self._after)))

    def detach(self) -> None:
        """Take the step off its optimizer."""
        for handle in self._handles:
            handle.remove()
        if hasattr(self.optimizer, "proximal_step"):
            self.optimizer.proximal_step = None  # pyright: ignore[reportAttributeAccessIssue]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.begin()

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.finish()

    @torch.no_grad()
    def begin(self) -> None:
        """Look at where a step starts from."""
        self._fused = None
        if self.support.holds and _is_captured():
            warnings.warn(
                "A CUDA graph is being captured: a replay takes the same step again, and looks at "
                "no averaged gradients, so from now on zeros wake freely (Schedule.holds_zeros).",
                stacklevel=6,
            )
            self.support.let_go()
        self._watch_zeros()
        progress = self._coming_progress()
        stride = max(progress - self.state.progress, 0.0)
        schedule, control = self.schedule, self.control
        keeps_zeros = schedule.keeps_zeros(progress)
        if schedule.is_debiasing(progress):
            factors, bounds = Factors(None), None
        elif control is not None:
            factors = control.factors
            bounds = control.bounds(progress, stride, self._names())
        else:
            factors, bounds = Factors(schedule.strength(self.state.progress)), None
        if keeps_zeros and not self._is_shut:
            self.support.shut()
        self._is_shut = keeps_zeros
        self._unbuffered |= self._with_empty_buffers()
        skip, is_skipped = self._skipping()
        self._context = StepContext(
            progress,
            stride,
            factors,
            bounds,
            keeps_zeros,
            skip,
            is_skipped,
            frozenset(self._unbuffered),
            {p: p.detach().clone() for p in self._kept},
            {p: local(p.detach()) != 0 for p in self.members} if keeps_zeros else {},
            self.support.snapshot() if is_sampled(self.state.num_steps + 1) else None,
        )

    def _watch_zeros(self) -> None:
        """Make gates that are missing, and see what others have written since the last step."""
        groups = self.optimizer.param_groups
        trained = (*(p.requires_grad for p in self.members), sum(len(g["params"]) for g in groups))
        changed = [p for p, version in self._versions.items() if version != _version(p)]
        if self._divided is not None and self._divided[0] == trained and not changed:
            return
        held = {p for group in groups for p in group["params"]}
        if self._divided is None or self._divided[0] != trained:
            parts = (part.trained() for part in self.parts)
            here = [p for p in parts if p is not None and held.issuperset(p.parameters)]
            self._divided = (trained, *divide(here))
        mine = {p: c for p, c in self.chains.items() if p.requires_grad and p in held}
        self.support.watch(mine, *self._divided[1:])
        if changed:
            self.support.resync(changed)

    @torch.no_grad()
    def fused_step(self, update: str) -> set[Tensor]:
        """Update what kernels serve, together with the prox, and return which parameters.

        None while the strength is searched for or zeros are kept: both need the point that the
        optimizer moves to. None either where the averages are about to say which zeros may wake.
        """
        context = self._context
        assert context is not None, "begin comes first"
        if context.is_skipped or context.keeps_zeros or context.bounds is not None:
            return set()
        if self.support.averages and is_weighed(self.state.num_steps + 1):
            return set()
        began = time.perf_counter()
        moves = self._moves(context, every=True)
        plan = self._plan(moves, context.factors, update)
        if not plan.updated or not all([launch.take_gradients() for launch in plan.launches]):
            return set()
        if plan.counts:
            taken = 1.0 if context.skip is None else 1.0 - context.skip
            torch._foreach_add_(list(plan.counts), taken)  # pyright: ignore[reportPrivateImportUsage]: no public name
        scale = Scale(context.factors)
        grad_scale = getattr(self.optimizer, "grad_scale", None)
        for launch in plan.launches:
            launch.run(moves, self.step_size, scale, context.skip, grad_scale)
            for p, first in launch.fresh.items():
                self.optimizer.state[p].setdefault(FIRST_MOMENT_KEYS[update], first)
        left = StepPlan((), plan.chains, plan.alone, plan.together)
        self._fused = (moves, left)
        self.prox_seconds += time.perf_counter() - began
        return set(plan.updated)

    @torch.no_grad()
    def finish(self) -> None:
        """Apply the penalties to what the optimizer has moved, and advance the state."""
        context, self._context = self._context, None
        # None: within a step that calls the one it overrides, of which the inner one has finished.
        if context is None or context.is_skipped:
            return
        began = time.perf_counter()
        moves, plan = self._fused or (self._moves(context), None)
        self._advance(context, moves)
        moves = _stirring(moves)
        if self._fused:
            moves = {p: m for p, m in moves.items() if p in self.members}
        self._weigh_zeros(context, moves)
        if self.control is not None and context.factors.common is not None and moves:
            self._controlled(self.control, context, moves)
        else:
            self._apply(context, moves, context.factors, plan)
        if context.gates is not None:
            self.support.count_flips(context.gates, self.state.num_steps)
        if is_compared(self.state.num_steps):
            self.support.count_overlap()
        if is_compared(self.state.num_steps + INTERVAL):
            self.support.mark()
        self._versions = {p: _version(p) for p in self.support.members}
        if self.control is not None and self.control.is_due(context.progress, context.stride):
            self.control.observe(context.progress, self.densities())
        self.prox_seconds += time.perf_counter() - began
        is_last = context.progress >= 1.0 and context.stride > 0
        if self.schedule.num_steps is not None and is_last:
            self._warn_of_a_missed_target()

    def _weigh_zeros(self, context: StepContext, moves: Moves) -> None:
        """Learn from the gradients of the step which zeros may wake."""
        support, step = self.support, self.state.num_steps
        members = support.members
        if self._average_of is not None:
            leads = {id(m.group): m for m in map(moves.get, members) if m is not None}
            due = {
                group
                for group, lead in leads.items()
                if step % interval_of(self._average_of(lead)) == 0
            }
            some = {p: moves[p] for p in members if p in moves and id(moves[p].group) in due}
            unscale = getattr(self.optimizer, "grad_scale", None)
            support.sample(some, self._average_of, unscale, context.skip)
        if is_weighed(step) and context.factors.common is not None:
            scale = Scale(context.factors)
            # What wakes in the last step could not be looked at again.
            is_last = context.progress >= 1.0 and context.stride > 0
            opens = not (context.keeps_zeros or is_last)
            support.weigh(self.chains, scale, moves, self.step_size, opens)

    def _advance(self, context: StepContext, moves: Moves) -> None:
        state = self.state
        state.num_steps += 1
        state.progress = context.progress
        state.factors = context.factors
        state.gains |= {p: m.gain for p, m in moves.items() if _is_heavy(m.group)}
        state.num_moves.update(moves.keys())
        self._unbuffered -= moves.keys()
        self._stride = context.stride
        if self.schedule.num_steps is not None:
            self.progress.reach(context.progress)

    def _controlled(self, control: DensityController, context: StepContext, moves: Moves) -> None:
        """Apply the penalties at the strengths that the density asks for."""
        bounds, names = context.bounds, self._names()
        assert bounds is not None, "a step that is controlled has bounds"
        start = {p: p.detach().clone() for p in moves}
        attempt = partial(self._attempt, control, context, moves, start, self.support.snapshot())
        if control.is_new():
            target = self.schedule.target_density or 0.0
            wanted = dict.fromkeys(names, (target, (1 + target) / 2))
            critical = solve(wanted, control.named(names), attempt, FIRST_TRIALS)
            # Where nobody knows yet how long training is, it is taken to be long.
            num_steps = self.schedule.ramp_until / context.stride if context.stride else 1e3
            control.begin(context.progress, critical, num_steps)
        found = solve(bounds, control.named(names), attempt)
        control.adopt(found, closing=context.progress > self.schedule.closing[0])
        self.state.factors = control.factors

    def _attempt(
        self,
        control: DensityController,
        context: StepContext,
        moves: Moves,
        start: Mapping[nn.Parameter, Tensor],
        gates: Sequence[Tensor],
        named: Mapping[str, float],
    ) -> Densities:
        """Take the step at given factors, from where the optimizer moved to; say what it leaves.

        start: the weights there. gates: of before the step. named: factors by name.
        """
        for p, values in start.items():
            p.copy_(values)
        self.support.restore(gates)
        factors = control.factors
        if self.schedule.layerwise:
            layers = {**(factors.layers or {}), **named}
            factors = Factors(factors.common, layers, searched=True)
        else:
            factors = Factors(named[GLOBAL], searched=True)
        if context.progress > self.schedule.closing[0] and not context.keeps_zeros:
            # Which zeros may wake depends on the strength, and now each has to be met exactly.
            scale = Scale(factors)
            self.support.weigh(self.chains, scale, moves, self.step_size, opens=True)
        self._apply(context, moves, factors)
        return self.densities()

    def _apply(
        self, context: StepContext, moves: Moves, factors: Factors, plan: StepPlan | None = None
    ) -> None:
        """Apply all penalties at their strengths, and put back zeros that are to stay.

        plan: what an update that took the prox along has left; default: all.
        """
        plan = self._plan(moves, factors) if plan is None else plan
        scale = Scale(factors)
        for launch in plan.launches:
            launch.run(moves, self.step_size, scale, context.skip)
        taken = None if context.skip is None else 1.0 - context.skip
        kinds = {p: active(chain, scale) for p, chain in plan.chains.items() if p in moves}
        kinds = {p: penalties for p, penalties in kinds.items() if penalties}
        for penalties, batch in entry_batches(kinds, moves, self.support.entries):
            prox_entries(penalties, batch, self.step_size, taken)
        for penalty, batches in group_batches(
            plan.alone, plan.together, scale, moves, self.step_size, self.support.groups
        ):
            prox_rows(penalty, batches, self.step_size, taken, self.state.num_steps)
        self.support.keep_thinned(moves)
        for p in moves if context.keeps_zeros else ():
            local(p).mul_(context.nonzero[p])

    def _plan(self, moves: Moves, factors: Factors, update: str = "none") -> StepPlan:
        """Return the plan for what moved: a kept one, where it serves again."""
        off, layered = factors.common is None, factors.layers is not None
        trained = tuple(p.requires_grad for p in self.members)
        memory = signature(moves, self.step_size, update)
        version = self.support.version
        key = (update, off, layered, trained, version, self._paces(moves), memory)
        return self.plans.get(key, partial(self._build_plan, moves, off, layered, update))

    def _build_plan(self, moves: Moves, off: bool, layered: bool, update: str) -> StepPlan:
        """Build a plan; where penalties are off, of constraints alone."""
        chains, parts = self.chains, self.parts
        if off:
            held = {p: [c for c in chain if c.penalty.constraint] for p, chain in chains.items()}
            chains = {p: tuple(chain) for p, chain in held.items() if chain}
            parts = [part for part in parts if part.penalty.constraint]
        self._warn_of_split_groups()
        return build_plan(
            chains,
            parts,
            moves,
            self.step_size,
            support=self.support,
            layered=layered,
            update=update,
        )

    def _paces(self, moves: Moves) -> tuple[int, ...]:
        """Number the parameters by how they have moved; those with one number share it all.

        Nothing is returned where all have moved together all along.
        """
        counts = self.state.num_moves
        even = len({move.gain for move in moves.values()}) < 2 and len(set(counts.values())) < 2
        if even and len(counts) in (0, len(moves)):
            return ()
        places: dict[Any, int] = {}
        return tuple(
            places.setdefault((move.gain, counts[p]), len(places)) for p, move in moves.items()
        )

    def _moves(self, context: StepContext, every: bool = False) -> Moves:
        """Return what moves the penalised parameters, or every one, by this step.

        Frozen parameters, and those without a gradient, are not moved.
        """
        moves, states = {}, self.optimizer.state
        for group in self.optimizer.param_groups:
            heavy = _is_heavy(group)
            for p in group["params"]:
                mine = p in self.members
                if p.grad is None or p.numel() == 0 or not (every or mine):
                    continue
                if mine and not p.requires_grad:  # what is left of its gradient moves it no more
                    continue
                first = heavy and p in context.firsts
                gain = 1.0
                if heavy:
                    rest = momentum_gain_at_rest(group)
                    gain = momentum_gain(group, None if first else self.state.gains.get(p, rest))
                before = context.before.get(p) if context.before else None
                count = self.state.num_moves[p] + 1
                moves[p] = Move(p, group, states[p], gain, before, first, count)
        return moves

    def _with_empty_buffers(self) -> set[nn.Parameter]:
        """Return the parameters whose momentum buffers the coming step will begin."""
        return {
            p
            for group in self.optimizer.param_groups
            if _is_heavy(group)
            for p in group["params"]
            if self.optimizer.state.get(p, {}).get("momentum_buffer") is None
        }

    def _coming_progress(self) -> float:
        """Return how far training will be after the coming step."""
        total, given = self.schedule.num_steps, self.progress.value
        if total is not None:
            return max(min((self.state.num_steps + 1) / total, 1.0), given or 0.0)
        if given is None and self.schedule.depends_on_progress:
            raise InputError(
                "Regularizer does not know how far training is, and its schedule depends on it. "
                "Give Schedule(num_steps=...), the steps of the whole training, or call "
                "set_progress(share) before each step."
            )
        return given or 0.0

    def _skipping(self) -> tuple[Tensor | None, bool]:
        """Return a loss scaler's verdict that only the device knows, or ours that it skips.

        The scaler sets `found_inf` on a fused optimizer for the time of the call. It is read here
        where that is free, or where the state depends on it.
        """
        skip: Tensor | None = getattr(self.optimizer, "found_inf", None)
        if skip is None:
            return None, False
        stirs = any(
            _is_heavy(group) and not math.isclose(
                self.state.gains.get(p, 0.0), momentum_gain_at_rest(group), rel_tol=1e-9
            )
            for group in self.optimizer.param_groups
            for p in group["params"]
        )  # fmt: skip
        if skip.device.type == "cpu" or self.schedule.depends_on_progress or stirs:
            return None, bool(skip.item())
        return skip, False

    def counted(self) -> list[nn.Parameter]:
        """Return the parameters that count for density: penalised, and trained by this optimizer.

        Of those, where a density is aimed at, what a penalty can make zero. Before the first step:
        those that it holds and that are not frozen.
        """
        trained = self.trained()
        return trained if self.control is None else [p for p in trained if p in self._zeroable]

    def trained(self) -> list[nn.Parameter]:
        """Return the penalised parameters that this optimizer trains."""
        moved = self.state.num_moves or {
            p: 0 for group in self.optimizer.param_groups for p in group["params"]
        }
        return [p for p in self.members if p in moved and p.requires_grad]

    def densities(self) -> dict[str, float]:
        """Return the share of non-zero entries, under GLOBAL; with `layerwise` by layer too.

        A collective where weights are sharded; waits for a GPU once (twice with groups by layer).
        """
        members = self.counted()
        if not members:
            return {GLOBAL: 1.0}
        counts = torch.stack([torch.count_nonzero(local(p.detach())) for p in members])
        alive = dict(zip(members, summed(counts, members).tolist(), strict=True))
        found = {GLOBAL: sum(alive.values()) / sum(p.numel() for p in members)}
        if self.schedule.layerwise:
            for p in members:
                found |= {part.key: alive[p] / p.numel() for part in self._counted_chain(p)}
            parts = self._counted_parts(set(members))
            seen = whole_rows([(part.key, part.bundle) for part in parts])
            shares = {key: (rows != 0).float().mean() for key, rows in seen}
            if shares:
                found |= dict(zip(shares, torch.stack(list(shares.values())).tolist(), strict=True))
        return found

    def _names(self) -> list[str]:
        """Return the names of what has a factor: the layers that are trained, or GLOBAL alone."""
        if not self.schedule.layerwise:
            return [GLOBAL]
        members = self.counted()
        keys = [part.key for p in members for part in self._counted_chain(p)]
        return [*keys, *(part.key for part in self._counted_parts(set(members)))]

    def _counted_chain(self, p: nn.Parameter) -> list[Part]:
        return [part for part in self.chains.get(p, ()) if part.penalty.sparsifies]

    def _counted_parts(self, members: set[nn.Parameter]) -> list[Part]:
        narrow = (part.trained() for part in self.parts if part.penalty.sparsifies)
        return [p for p in narrow if p is not None and members.issuperset(p.parameters)]

    def target_result(self) -> TargetResult | None:
        """Compare the density with the target; None where there is none, or nothing to count."""
        target = self.schedule.target_density
        if target is None or not self.counted():
            return None
        found = self.densities()
        if self.schedule.layerwise and len(found) > 1:
            del found[GLOBAL]
        worst = max(found.values(), key=lambda share: abs(share - target))
        result = TargetResult(target, worst)
        if result.is_met:
            return result
        if self.state.progress <= self.schedule.closing[0]:
            reason = (
                f"training ended at {self.state.progress:.0%} of its length, and the density is "
                f"met from {self.schedule.closing[0]:.0%} on"
            )
        else:
            reason = (
                "no strength leaves that many: groups are coarse, weights are equal, or zeros "
                "cannot come back"
            )
        return TargetResult(target, worst, reason)

    def _warn_of_a_missed_target(self) -> None:
        stopped = [
            step
            for step in self.others
            if step is not self and step.state.progress + step._stride < 1 - 1e-9
        ]
        for step in (self, *stopped):
            result = step.target_result()
            if result is not None and not result.is_met:
                warnings.warn(missed(result), stacklevel=6)

    def _warn_of_split_groups(self) -> None:
        """Warn of groups that are not penalised, since this optimizer trains them in part."""
        held = {p for group in self.optimizer.param_groups for p in group["params"]}
        for part in self.parts:
            trained = part.trained()
            if trained is None or held.isdisjoint(trained.parameters):
                continue
            outside = [piece.name for piece in trained.bundle.pieces if piece.parameter not in held]
            if outside:
                warnings.warn(
                    f"{type(part.penalty).__name__} leaves {part.bundle.name!r} alone: "
                    f"{outside[0]!r} belongs to its groups, is trained, and no longer held by this "
                    f"{type(self.optimizer).__name__}. Give all of them to one optimizer.",
                    stacklevel=2,
                )
                return

    def state_dict(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return what training needs again, by parameter name; a collective for shards."""
        return {**self.record(names), "support": self.support.state_dict(names)}

    def record(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return the numbers of the state, by parameter name."""
        state = self.state
        layers = state.factors.layers
        return {
            "num_steps": state.num_steps,
            "progress": state.progress,
            "gains": {names[p]: gain for p, gain in state.gains.items() if p in names},
            "num_moves": {names[p]: num for p, num in state.num_moves.items() if p in names},
            "members": [names[p] for p in self.trained() if p in names],
            "counted": [names[p] for p in self.counted() if p in names],
            "common": state.factors.common,
            "acted": self._acted(),
            "layers": None if layers is None else dict(layers),
            "control": None if self.control is None else self.control.state_dict(),
        }

    def _acted(self) -> dict[str, Any]:
        """Return the factors of the last step at which the penalties were on."""
        factors = self.state.factors
        if factors.common is None:
            whole = Factors(self.schedule.strength(1.0))
            factors = whole if self.control is None else self.control.factors
        layers = factors.layers
        return {"common": factors.common, "layers": None if layers is None else dict(layers)}

    def load_state_dict(
        self, saved: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Continue from a saved state.

        parameters: of the model, by the names in the state.
        """
        known = {p for group in self.optimizer.param_groups for p in group["params"]}
        found = {name: p for name, p in parameters.items() if p in known}
        self.state = ProxState(
            saved["num_steps"],
            saved["progress"],
            {found[name]: gain for name, gain in saved["gains"].items() if name in found},
            Counter(
                {found[name]: num for name, num in saved["num_moves"].items() if name in found}
            ),
            Factors(saved["common"], saved["layers"], self.control is not None),
        )
        if self.control is not None and saved["control"] is not None:
            self.control.load_state_dict(saved["control"])
        self._watch_zeros()
        self.support.load_state_dict(saved["support"], found)
        self._versions = {p: _version(p) for p in self.support.members}


def missed(result: TargetResult) -> str:
    """Say that a target was missed, and why."""
    return (
        f"target_density={result.target:g} was asked for, and {result.density:.4g} of the weights "
        f"that are trained and penalised are not zero: {result.reason}. "
        "Regularizer.meet_target() sets to zero what is missing."
    )


def _is_heavy(group: Mapping[str, Any]) -> bool:
    """Say whether the optimizer moves by a momentum buffer that torch does not correct."""
    return ("dampening" in group and group["momentum"] > 0) or (
        "centered" in group and group["momentum"] > 0
    )  # fmt: skip


def _is_captured() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _version(p: nn.Parameter) -> tuple[int, int]:
    """Return what changes when somebody writes to a parameter, or gives it other memory."""
    values = local(p) if hasattr(p, "placements") else p
    return values._version, values.data_ptr()


def _stirring(moves: Moves) -> Moves:
    """Leave out what a learning rate of 0 has not moved."""
    rates = [m.group["lr"] for m in moves.values()]
    if all(isinstance(rate, Tensor) or rate for rate in rates):
        return moves
    return {p: m for p, m in moves.items() if isinstance(m.group["lr"], Tensor) or m.group["lr"]}


def _uncompiled(hook: Any) -> Any:
    """Keep a hook out of torch.compile(optimizer.step): it runs beside the compiled update."""
    return torch.compiler.disable(hook)


def _check(optimizer: Optimizer, members: Sequence[nn.Parameter], parts: Sequence[Part]) -> None:
    held = {p for group in optimizer.param_groups for p in group["params"]}
    who = type(optimizer).__name__
    if held.isdisjoint(members) and all(p.requires_grad for p in members):
        raise InputError(
            f"attach got a {who} that holds none of the penalised parameters. Make it from the "
            "parameters of the very model that is penalised."
        )
    for part in parts:
        pieces = [p for p in part.bundle.pieces if p.parameter.requires_grad]
        inside = [piece.name for piece in pieces if piece.parameter in held]
        outside = [piece.name for piece in pieces if piece.parameter not in held]
        if inside and outside:
            raise InputError(
                f"attach got a {who} that holds {inside[0]!r} but not {outside[0]!r}, which live "
                "and die together. Give them to one optimizer, or freeze the latter "
                "(requires_grad_(False))."
            )
    joint = [type(part.penalty).__name__ for part in parts if part.penalty.joint]
    if joint and hasattr(optimizer, "proximal_step") and not isinstance(optimizer, FusedOptimizer):
        raise InputError(
            f"{joint[0]} needs one step for a whole matrix, and {who} sums its steps over a "
            "stage. Use SGD, Adam or AdamW."
        )
    for group in optimizer.param_groups:
        if group.get("centered") and group.get("momentum", 0.0) > 0:
            raise InputError(
                f"attach got {who} with momentum={group['momentum']} and centered=True: the "
                "variance under its root vanishes where gradients settle, and what it then moves "
                "along depends on all steps before, so that no prox has the minimiser of the "
                "objective. Use one of the two options, or AdamW."
            )
    hooks = optimizer._optimizer_step_pre_hooks.values()
    taken = [getattr(hook, "__wrapped__", hook) for hook in hooks]
    if any(isinstance(getattr(hook, "__self__", None), ProximalStep) for hook in taken):
        raise InputError(
            f"This {who} has a regularizer attached already. Detach it first, or give one "
            "Regularizer all penalties."
        )
    _warn_of_half_precision([p for p in members if p in held])


def _warn_of_half_precision(members: Sequence[nn.Parameter]) -> None:
    coarse = {p.dtype for p in members if p.dtype in (torch.bfloat16, torch.float16)}
    if coarse:
        warnings.warn(
            f"Penalised weights are stored in {', '.join(map(str, coarse))}: what a step moves "
            "them by is lost below a 256th (bfloat16) or 2048th (float16) of their size, and with "
            "it most of a penalty. Keep weights in float32 and compute in half precision "
            '(torch.autocast; Trainer(precision="bf16-mixed")).',
            stacklevel=5,
        )


def _step_size_or_warning(optimizer: Optimizer) -> StepSizeOf:
    known = step_size_of(optimizer)
    if known is None:
        warn_of_unknown(type(optimizer).__name__)
    return known or learning_rate
