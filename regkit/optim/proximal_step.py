"""The proximal step: right after every real update, with the step size of its optimizer."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.optim.batching import entry_batches
from regkit.optim.budget import Budget
from regkit.optim.density_control import DensityController, Factors
from regkit.optim.density_step import DensityStep
from regkit.optim.gradient_averages import SAMPLE_INTERVAL, GradientAverages
from regkit.optim.kernel_params import sent
from regkit.optim.moves import MoveHistory, Roster, held_by
from regkit.optim.optimizer_checks import (
    check_optimizer,
    step_size_or_warning,
    warn_of_split_groups,
)
from regkit.optim.parts import Chain, Part, Scale, active
from regkit.optim.schedule import Progress, Schedule
from regkit.optim.sharding import DividedParts, divide, group_batches
from regkit.optim.step_context import StepContext
from regkit.optim.step_plan import FIRST_MOMENT_KEYS, PlanCache, StepPlan, build_plan, signature
from regkit.optim.step_size import AVERAGES, SEEN_BY_THEIR_MOVE, Moves, gradient
from regkit.optim.support import Support, gates_open_at
from regkit.optim.support_report import SupportCounts, flips_counted_at, supports_compared_at
from regkit.optim.target import CountedWeights, TargetResult, missed
from regkit.optim.torch_backend import prox_entries, prox_rows
from regkit.structure.distributed import local

# torch has no public names for operations on lists.
# pyright: reportPrivateImportUsage=false


@dataclass
class ProxState:
    """How far the steps have come; it advances in `ProximalStep.finish` alone.

    num_steps: real steps so far. progress: of training, after the last of them.
    stride: progress that the last one made. factors: that it was taken with.
    """

    num_steps: int = 0
    progress: float = 0.0
    stride: float = 0.0
    factors: Factors = field(default_factory=Factors)


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
    budget: that the schedule asks for, if it is none of density.
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
        budget: Budget | None = None,
    ) -> None:
        self.optimizer, self.chains, self.parts = optimizer, chains, parts
        self.others = others
        self.schedule = schedule or Schedule()
        self.progress = progress or Progress()
        grouped = (p for part in parts for p in part.parameters)
        self.members = dict.fromkeys([*chains, *grouped])
        _refuse_a_second(optimizer)
        check_optimizer(optimizer, self.members, parts)
        self.step_size = step_size_or_warning(optimizer)
        self.state = ProxState(factors=Factors(self.schedule.strength(0.0)))
        self.history = MoveHistory(optimizer, self.members)
        self.counted = CountedWeights(chains, parts, self.schedule, self.history, budget)
        has_target = self.schedule.target is not None
        self.control = (
            DensityController(self.schedule, self.counted.targets()) if has_target else None
        )
        average_of = AVERAGES.get(self.step_size, gradient)
        self.averages = GradientAverages(average_of)
        self.support = Support(holds=self.schedule.holds_zeros and average_of is not None)
        self.support_counts = SupportCounts()
        self.plans = PlanCache()
        self.prox_seconds = 0.0
        # The parts that this optimizer trains whole, and what they depend on.
        self._trained: tuple[int, ...] = ()
        self._trained_parts = DividedParts()
        self._has_closed = False
        self._context: StepContext | None = None
        self._fused: tuple[Roster, StepPlan] | None = None
        joint = [p for part in parts if part.penalty.joint for p in part.parameters]
        self._kept = list(self.members) if self.step_size in SEEN_BY_THEIR_MOVE else joint
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
            self.support.free_all()
        self._update_gates()
        progress = self._coming_progress()
        stride = max(progress - self.state.progress, 0.0)
        schedule, control = self.schedule, self.control
        keeps_zeros = schedule.keeps_zeros(progress)
        if schedule.is_debiasing(progress):
            factors, bounds = Factors(None), None
        elif control is not None:
            factors = control.factors
            bounds = control.bounds(progress, stride, self.counted.factor_names())
        else:
            factors, bounds = Factors(schedule.strength(self.state.progress)), None
        if keeps_zeros and not self._has_closed:
            self.support.close_all()
        self._has_closed = keeps_zeros
        self.history.begin_step()
        skip, is_skipped = self._skipping()
        self._context = StepContext(
            progress,
            stride,
            factors,
            bounds,
            keeps_zeros,
            skip,
            is_skipped,
            {p: p.detach().clone() for p in self._kept},
            which_nonzero(self.members) if keeps_zeros else {},
            self.support.snapshot() if flips_counted_at(self.state.num_steps + 1) else None,
        )

    def _update_gates(self) -> None:
        """Make gates that are missing, and see what others have written since the last step."""
        groups = self.optimizer.param_groups
        trained = (sum(len(g["params"]) for g in groups), *(p.requires_grad for p in self.members))
        written = self.support.written_outside()
        if trained == self._trained and not written:
            return
        held = held_by(self.optimizer)
        if trained != self._trained:
            parts = (part.trained() for part in self.parts)
            here = [p for p in parts if p is not None and held.issuperset(p.parameters)]
            self._trained, self._trained_parts = trained, divide(here)
        mine = {p: c for p, c in self.chains.items() if p.requires_grad and p in held}
        self.support.make_gates(mine, self._trained_parts)
        if written:
            self.support.record_outside_writes(written)

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
        depends = self.schedule.depends_on_progress or not self.history.is_at_rest()
        if skip.device.type == "cpu" or depends:
            return None, bool(skip.item())
        return skip, False

    @torch.no_grad()
    def fused_step(self, update: str) -> Set[Tensor]:
        """Update what kernels serve, together with the prox, and return which parameters.

        None while the strength is searched for or zeros are kept: both need the point that the
        optimizer moves to. None either where the averages are about to say which zeros may wake.
        """
        context = self._context
        assert context is not None, "begin comes first"
        if context.is_skipped or context.keeps_zeros or context.bounds is not None:
            return frozenset()
        if self.averages.by_parameter and gates_open_at(self.state.num_steps + 1):
            return frozenset()
        began = time.perf_counter()
        roster = self.history.roster(context.before, every=True)
        plan = self._plan(roster, context.factors, update)
        passes = [launch.with_gradients() for launch in plan.launches]
        if not plan.updated or None in passes:
            return frozenset()
        taken = 1.0 if context.skip is None else 1.0 - context.skip
        scale = Scale(context.factors)
        grad_scale = getattr(self.optimizer, "grad_scale", None)
        for launch, own in zip(plan.launches, passes, strict=True):
            here = sent(taken, launch.device) if isinstance(taken, Tensor) else taken
            launch.prox_pass.count_step(here)
            launch.run(roster.moves, self.step_size, scale, context.skip, grad_scale, own)
            for p, first in launch.fresh.items():
                self.optimizer.state[p].setdefault(FIRST_MOMENT_KEYS[update], first)
        self._fused = (roster, StepPlan((), plan.chains, plan.parts))
        self.prox_seconds += time.perf_counter() - began
        return plan.updated

    @torch.no_grad()
    def finish(self) -> None:
        """Apply the penalties to what the optimizer has moved, and advance the state."""
        context, self._context = self._context, None
        # None: within a step that calls the one it overrides, of which the inner one has finished.
        if context is None or context.is_skipped:
            return
        began = time.perf_counter()
        roster, plan = self._fused or (self.history.roster(context.before), None)
        self._advance(context, roster)
        roster = roster.moved()
        self._open_gates(context, roster)
        if self.control is not None and context.factors.common is not None and roster.moves:
            DensityStep(self.control, self.schedule, self.counted, self.support).take(
                context,
                roster.moves,
                partial(self._apply, context, roster),
                partial(self._open_by_evidence, moves=roster.moves, opens=True),
            )
            self.state.factors = self.control.factors
        else:
            self._apply(context, roster, context.factors, plan)
        self._count_support(context)
        self.support.remember_memory()
        if self.control is not None and self.control.is_due(context.progress, context.stride):
            self.control.observe(context.progress, self.counted.densities())
        self.prox_seconds += time.perf_counter() - began
        if self.schedule.num_steps is not None and context.is_last:
            self._warn_of_missed_targets()

    def _advance(self, context: StepContext, roster: Roster) -> None:
        num_steps = self.state.num_steps + 1
        self.state = ProxState(num_steps, context.progress, context.stride, context.factors)
        self.history.advance(roster)
        if self.schedule.num_steps is not None:
            self.progress.reach(context.progress)

    def _open_gates(self, context: StepContext, roster: Roster) -> None:
        """Learn from the gradients of the step which zeros may wake."""
        step, moves = self.state.num_steps, roster.moves
        if self.averages.is_due(step, roster.leads):
            gated = {p: moves[p] for p in self.support.members if p in moves}
            unscale = getattr(self.optimizer, "grad_scale", None)
            self.averages.sample(step, gated, unscale, context.skip)
        if gates_open_at(step) and context.factors.common is not None:
            # What wakes in the last step could not be looked at again.
            opens = not (context.keeps_zeros or context.is_last)
            self._open_by_evidence(context.factors, moves, opens)

    def _open_by_evidence(self, factors: Factors, moves: Moves, opens: bool) -> None:
        scale = Scale(factors)
        self.support.open_by_evidence(self.averages, scale, moves, self.step_size, opens)

    def _count_support(self, context: StepContext) -> None:
        step = self.state.num_steps
        if context.gates is not None:
            self.support_counts.add_flips(self.support, context.gates, step)
        if supports_compared_at(step):
            self.support_counts.add_overlap(self.support)
        if supports_compared_at(step + SAMPLE_INTERVAL):
            self.support.mark_living()

    def _warn_of_missed_targets(self) -> None:
        """Warn of the target of this step, and of others that have stopped before their end."""
        stopped = [
            step
            for step in self.others
            if step is not self and step.state.progress + step.state.stride < 1 - 1e-9
        ]
        for step in (self, *stopped):
            result = step.target_result()
            if result is not None and not result.is_met:
                warnings.warn(missed(result), stacklevel=6)

    def _apply(
        self, context: StepContext, roster: Roster, factors: Factors, plan: StepPlan | None = None
    ) -> None:
        """Apply all penalties at their strengths, and put back zeros that are to stay.

        plan: what an update that took the prox along has left; default: all.
        """
        plan, moves = self._plan(roster, factors) if plan is None else plan, roster.moves
        scale = Scale(factors)
        for launch in plan.launches:
            launch.run(moves, self.step_size, scale, context.skip)
        taken = None if context.skip is None else 1.0 - context.skip
        kinds = {p: active(chain, scale) for p, chain in plan.chains.items() if p in moves}
        kinds = {p: penalties for p, penalties in kinds.items() if penalties}
        for penalties, batch in entry_batches(kinds, moves, self.support.entries):
            prox_entries(penalties, batch, self.step_size, taken)
        for penalty, batches in group_batches(
            plan.parts, scale, moves, self.step_size, self.support.groups
        ):
            when = (self.state.num_steps, context.is_last)
            prox_rows(penalty, batches, self.step_size, taken, *when)
        self.support.keep_single_zeros(moves)
        put_back_zeros(context.nonzero, moves)

    def _plan(self, roster: Roster, factors: Factors, update: str = "none") -> StepPlan:
        """Return the plan for what moved: a kept one, where it serves again."""
        off, layered = factors.common is None, factors.layers is not None
        memory = signature(roster, self.step_size, update)
        key = (update, off, layered, self.support.version, self._trained, memory)
        build = partial(self._build_plan, roster.moves, off, layered, update)
        return self.plans.get(key, roster.held, build)

    def _build_plan(self, moves: Moves, off: bool, layered: bool, update: str) -> StepPlan:
        """Build a plan; where penalties are off, of constraints alone."""
        chains, parts = self.chains, self.parts
        if off:
            held = {p: [c for c in chain if c.penalty.constraint] for p, chain in chains.items()}
            chains = {p: tuple(chain) for p, chain in held.items() if chain}
            parts = [part for part in parts if part.penalty.constraint]
        warn_of_split_groups(self.optimizer, self.parts)
        return build_plan(chains, parts, moves, self.step_size, self.support, layered, update)

    def target_result(self) -> TargetResult | None:
        """Compare the density with the target; None where there is none, or nothing to count."""
        return self.counted.result(self.state.progress)

    def state_dict(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return what training needs again, by parameter name; a collective for shards."""
        return {
            **self.record(names),
            "averages": self.averages.state_dict(names),
            "support": self.support.state_dict(names),
            "support_counts": self.support_counts.state_dict(),
        }

    def record(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return the numbers of the state, by parameter name."""
        state = self.state
        layers = state.factors.layers
        return {
            "num_steps": state.num_steps,
            "progress": state.progress,
            "moves": self.history.state_dict(names),
            "members": [names[p] for p in self.history.trained() if p in names],
            "counted": [names[p] for p in self.counted.parameters() if p in names],
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
        known = held_by(self.optimizer)
        found = {name: p for name, p in parameters.items() if p in known}
        factors = Factors(saved["common"], saved["layers"], self.control is not None)
        self.state = ProxState(saved["num_steps"], saved["progress"], factors=factors)
        self.history.load_state_dict(saved["moves"], found)
        if self.control is not None and saved["control"] is not None:
            self.control.load_state_dict(saved["control"])
        self._update_gates()
        self.averages.load_state_dict(saved["averages"], found)
        self.support.load_state_dict(saved["support"], found)
        self.support_counts.load_state_dict(saved["support_counts"])


def which_nonzero(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Return 1 for each entry that is not zero, else 0; NaN stays. Few launches."""
    owned = list(parameters)
    signs = list(torch._foreach_sign([local(p.detach()) for p in owned]))
    torch._foreach_abs_(signs)
    return dict(zip(owned, signs, strict=True))


def put_back_zeros(nonzero: Mapping[nn.Parameter, Tensor], moves: Moves) -> None:
    """Multiply what has moved by its entry of `which_nonzero`, where there is one. Few launches."""
    pairs = [(local(p.detach()), nonzero[p]) for p in moves if p in nonzero]
    if pairs:
        values, ones = map(list, zip(*pairs, strict=True))
        torch._foreach_mul_(values, ones)


def _refuse_a_second(optimizer: Optimizer) -> None:
    hooks = optimizer._optimizer_step_pre_hooks.values()
    taken = [getattr(hook, "__wrapped__", hook) for hook in hooks]
    if any(isinstance(getattr(hook, "__self__", None), ProximalStep) for hook in taken):
        raise InputError(
            f"This {type(optimizer).__name__} has a regularizer attached already. Detach it "
            "first, or give one Regularizer all penalties."
        )


def _is_captured() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _uncompiled(hook: Any) -> Any:
    """Keep a hook out of torch.compile(optimizer.step): it runs beside the compiled update."""
    return torch.compiler.disable(hook)
