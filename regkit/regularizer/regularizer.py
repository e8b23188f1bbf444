"""Penalties bound to a model: what is penalised, how much it adds, and the step that acts."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.optim.density_control import Factors
from regkit.optim.parts import Part, Scale
from regkit.optim.proximal_step import ProximalStep
from regkit.optim.residual import kkt_residual
from regkit.optim.schedule import Progress, Schedule
from regkit.optim.support_report import SupportReport, report_of
from regkit.optim.target import TargetResult
from regkit.penalties import ActivationPenalty, WeightPenalty
from regkit.regularizer.activations import FrameCollector
from regkit.regularizer.bound_penalty import BoundPenalty, Penalties, named
from regkit.regularizer.budgets import budget_of, measured_share, resumed
from regkit.regularizer.penalty_set import PenaltySet
from regkit.regularizer.thinning import meet_budget, meet_density
from regkit.structure.distributed import all_reduce_counts, local
from regkit.structure.groups import COUPLED
from regkit.structure.selectors import (
    declared_embeddings,
    embedding_module,
    select_parameters,
    table,
    weights,
)

# What there is to know before any optimizer is attached.
ALONE: Mapping[str, Any] = {"common": 1.0, "layers": None}
UNATTACHED: Mapping[str, Any] = {**ALONE, "acted": ALONE, "members": [], "counted": []}


class Regularizer:
    """Bind penalties to a model.

    Weight penalties act after each step of the attached optimizers, activation penalties join the
    loss:

        reg = Regularizer(model, [L1(lam=1e-4), TemporalSmoothness(lam=1e-2, module="encoder")])
        reg.attach(optimizer)
        loss = criterion(model(clip), label) + reg.activation_loss()

    Frozen weights count nowhere, neither in a target nor in a density; once they are trained they
    are penalised. A copy, and what is pickled, is not attached to any optimizer.

    penalties: one, several, or several by name.
    example: what the model is called with (a tensor, or a tuple of arguments), for groups that
        are found by tracing the model; default: `model.example_input_array`.
    schedule: how strong the weight penalties are in the course of training; None: as they say.
    Raises: InputError when a selector or module name matches nothing, when two penalties meet on
        one parameter and their proxes do not compose, or when the schedule asks for a density that
        no penalty here can bring about.
    """

    def __init__(
        self,
        model: nn.Module,
        penalties: Penalties,
        *,
        example: Any = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.model = model
        self.penalties = named(penalties)
        self.schedule = schedule or Schedule()
        self.progress = Progress()
        _check_target(self.schedule, self._of_kind(WeightPenalty))
        self._steps: list[ProximalStep] = []
        # What steps that are not attached now have left, or are to begin with.
        self._saved: list[dict[str, Any]] = []
        if example is None:
            example = getattr(model, "example_input_array", None)
        self._example = example
        self._weights = PenaltySet(model, self._of_kind(WeightPenalty), example)
        self._budget = budget_of(self.schedule, model, example, self._weights.grouped)
        if self._budget is not None:
            self._weights.scale(self._budget.lam_scale)
        self._collectors: dict[str, FrameCollector] = {}
        self._listens = True
        self._listen()
        self.last_activation_terms: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a regularizer that is attached to no optimizer."""
        state = {**vars(self), "_saved": self._states(), "_steps": [], "_collectors": {}}
        terms = self.last_activation_terms.items()
        return state | {"last_activation_terms": {name: t.detach() for name, t in terms}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, and listen to the model in it."""
        vars(self).update(state)
        if self._listens:
            self._listen()

    def _listen(self) -> None:
        """Hang collectors on the modules whose activations are penalised."""
        self._collectors = {
            name: FrameCollector(
                embedding_module(self.model, p.module, type(p).__name__), p.layout, p.pooled
            )
            for name, p in self._of_kind(ActivationPenalty).items()
        }

    def attach(self, optimizer: Any) -> "Regularizer":
        """Take a proximal step after every real step of this optimizer.

        Call it once for each optimizer of the model, after `fully_shard` if that is used.

        optimizer: a torch Optimizer, or Lightning's wrapper of one.
        Raises: InputError when the optimizer holds none of the penalised parameters, or has a
            regularizer already; and when the schedule depends on progress that nobody gives.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"attach got a {type(optimizer).__name__}; give a torch Optimizer.")
        known = self.schedule.num_steps is not None or self.progress.value is not None
        if self.schedule.depends_on_progress and not known:
            raise InputError(
                "attach: the schedule depends on how far training is, and nobody says it. Give "
                "Schedule(num_steps=...), the number of optimizer steps of the whole training, or "
                "call set_progress(0.0) now and set_progress(share) before each step."
            )
        self._weights.rebind()
        sharded = [p for p in self._weights.penalised() if hasattr(p, "placements")]
        if self._budget is not None and sharded:
            raise InputError(
                "attach: a budget counts channels on one process, and the weights are sharded. "
                "Give target_density, or train with DDP."
            )
        if self._weights.penalised():
            step = ProximalStep(
                optimizer,
                self._weights.elementwise,
                self._weights.grouped,
                self.schedule,
                self.progress,
                self._steps,
                self._budget,
            )
            self._steps.append(step)
            self._restore(len(self._steps) - 1)
        return self

    def detach(self) -> None:
        """Take everything off the optimizers and the model; what was found is kept."""
        self._saved = self._states()
        for step in self._steps:
            step.detach()
        for collector in self._collectors.values():
            collector.remove()
        self._steps, self._listens = [], False

    def set_progress(self, share: float) -> None:
        """Say which share of training, from 0 to 1, will be done after the coming step.

        It never goes back: a smaller share than before changes nothing.
        """
        self.progress.reach(share)

    @property
    def bound(self) -> Mapping[str, BoundPenalty]:
        """The weight penalties by name, bound to the model."""
        return self._weights.bound

    def named_parameters(self, name: str | None = None) -> dict[str, nn.Parameter]:
        """Return the parameters of the weight penalty `name`, or of all of them, by name."""
        return self._weights.named_parameters() if name is None else self.bound[name].parameters()

    def penalised(self) -> list[nn.Parameter]:
        """Return the parameters that a penalty with lam > 0 chooses, frozen ones among them."""
        return self._weights.penalised()

    def counted_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that count for density, by name.

        Those that a penalty with lam > 0 chooses and an attached optimizer trains (with a target
        density: what can become zero of them); before the first step, those that are not frozen.
        Without such a penalty, all weights that are not frozen, for comparison.
        """
        members = {name for record in self._records() for name in record["counted"]}
        penalised = set(self._weights.penalised())
        if not penalised:
            chosen = self.named_parameters() if self.bound else weights(self.model)
            return {name: p for name, p in chosen.items() if p.requires_grad} or chosen
        found = {
            name: p
            for name, p in self.named_parameters().items()
            if p in penalised and (name in members if members else p.requires_grad)
        }
        return found or self.named_parameters()

    def layer_density(self) -> dict[str, float]:
        """Return the share of non-zero entries of each layer, or set of channels, by penalty."""
        return {
            key: share for one in self.bound.values() for key, share in one.layer_density().items()
        }

    def value(self) -> Float[Tensor, ""]:
        """Return what the weight penalties add to the objective F, `lam` included.

        To be looked at, not trained on: it has no gradient, for the step acts already.
        `WeightDecay` is no part of F and adds nothing, and neither do frozen weights.
        """
        return sum(self.values().values(), start=self._zero())

    def values(self) -> dict[str, Float[Tensor, ""]]:
        """Return what each weight penalty adds to F, at the strength of the last step."""
        scale = self._scale()
        return {
            name: one.value(scale).to(self._zero().device)
            for name, one in self.bound.items()
            if not one.penalty.decoupled
        }

    def kkt_residual(self) -> Float[Tensor, ""]:
        """Return how far from stationary F is at these weights, from the gradients at hand.

        The length of the shortest subgradient of F, over all parameters: call it between backward
        and the optimizer's step. With the gradient of a mini-batch it holds that batch's noise.
        At the strength of the last step, without decoupled weight decay.
        """
        gradients = {p: p.grad for p in self.model.parameters() if p.grad is not None}
        parts = [now for p in self._weights.grouped if (now := p.trained()) is not None]
        return kkt_residual(gradients, self._weights.elementwise, parts, self._scale())

    def live_groups(self) -> dict[str, tuple[int, int]]:
        """Return by name of each group penalty how many of its groups are not zero, and of all.

        Waits for the GPU once.
        """
        counts = {name: one.num_live() for name, one in self.bound.items() if not one.elementwise}
        live = torch.stack(list(counts.values())).tolist() if counts else []
        totals = [sum(p.group_set.num_groups for p in self.bound[name].parts) for name in counts]
        return dict(zip(counts, zip(live, totals, strict=True), strict=True))

    def activation_loss(self) -> Float[Tensor, ""]:
        """Return what the activation penalties add to the loss since the last call.

        Call it once between the forward pass and backward. Computed in float32, autocast or not.
        Raises: RuntimeError when a penalised module has not run in training mode since then.
        """
        terms = self.activation_terms()
        for name in self._collectors:
            if name not in terms:
                raise RuntimeError(
                    f"activation_loss: the module of penalty {name!r} has not run in training "
                    "mode with gradients since the last call. Call it once a step, after "
                    "model(...). If the module does run and the model ran compiled before, call "
                    "torch.compiler.reset() after making the Regularizer."
                )
        return sum(terms.values(), start=self._zero())

    def activation_terms(self) -> dict[str, Float[Tensor, ""]]:
        """Take the activation penalties of the passes since the last call, by name.

        A penalty whose module has not run is left out; several passes are averaged.
        """
        terms = {}
        for name, penalty in self._of_kind(ActivationPenalty).items():
            passes = [self._checked(penalty, frames) for frames in self._collectors[name].take()]
            if passes:
                with torch.autocast(passes[0].device.type, enabled=False):
                    terms[name] = torch.stack([penalty.value(z.float()) for z in passes]).mean()
        self.last_activation_terms.update({name: term.detach() for name, term in terms.items()})
        return terms

    def modules_not_run(self) -> list[str]:
        """Return the names of the activation penalties whose modules never ran in training."""
        return [name for name, c in self._collectors.items() if c.num_calls == 0]

    def current_lams(self) -> dict[str, float]:
        """Return the strength of every penalty at the last step.

        With several optimizers that need different strengths: of the one that trains most of its
        weights.
        """
        found = {name: penalty.lam for name, penalty in self.penalties.items()}
        for name, one in self.bound.items():
            factors = self._factors(self._record_of(one.parts)["common"])
            penalty = Scale(factors)(replace(one.parts[0], penalty=one.penalty))
            found[name] = 0.0 if penalty is None else penalty.lam
        return found

    def acted_lams(self) -> dict[str, float]:
        """Return the strength of every penalty at the last step at which it was on.

        Where layers have strengths of their own, it is their mean, weighed by their sizes.
        """
        found = {name: penalty.lam for name, penalty in self.penalties.items()}
        for name, one in self.bound.items():
            acted = self._record_of(one.parts)["acted"]
            factors = self._factors(acted["common"], acted["layers"])
            sizes = {part.key: sum(p.numel() for p in part.parameters) for part in one.parts}
            mean = _mean_factor(factors, sizes)
            if one.penalty.sparsifies or not factors.searched:
                found[name] = one.penalty.scaled(mean).lam
        return found

    def current_layer_lams(self) -> dict[str, float]:
        """Return the strength in each layer with one of its own, named as in `layer_density`."""
        scale = self._scale()
        return {
            part.key: 0.0 if (now := scale(part)) is None else now.lam
            for one in self.bound.values()
            for part in one.parts
            if part.key in (self._record_of([part])["layers"] or {})
        }

    def support_report(self) -> SupportReport | None:
        """Say how settled the zeros are, over the last 200 steps; None after fewer than 20.

        Waits for a GPU.
        """
        return report_of([step.support_counts for step in self._steps])

    def target_results(self) -> list[TargetResult]:
        """Compare what each attached optimizer's weights have left with the target.

        Of a budget: what the net takes that is cut out of a copy, counted, or measured.
        """
        results = [r for step in self._steps if (r := step.target_result()) is not None]
        target = self.schedule.target
        if target is None or not target.is_budget or not results:
            return results
        multiple = self.schedule.multiple_of
        cut = measured_share(target.kind, self.model, self._example, multiple)
        result = replace(results[0], reached=cut)
        why = result.reason or "what reads or writes nothing but dead channels went with them"
        return [replace(result, reason="" if result.is_met else why)]

    @torch.no_grad()
    def meet_target(self) -> float:
        """Set to zero what is missing to the target, and return the density, or the share, then.

        For a training that ended before its schedule did. What the penalty would zero first goes;
        what is left is not touched, and wants some training with `debias`. Each optimizer's weights
        by themselves, and with `layerwise` each layer.
        Raises: InputError when the schedule has no target, or weights are sharded.
        """
        target, budget = self.schedule.target, self._budget
        if target is None:
            raise InputError("meet_target: the schedule has no target, such as target_density.")
        counted = self.counted_parameters()
        if sharded := [name for name, p in counted.items() if hasattr(p, "placements")]:
            raise InputError(
                f"meet_target: {sharded[0]!r} is sharded over ranks, and what goes first of its "
                "weights is not known on one. Call it on the whole model, loaded on one process."
            )
        layerwise = self.schedule.layerwise
        if budget is not None:
            return meet_budget(self._sparsifying(set(counted.values())), budget, layerwise)
        trained = [set(record["counted"]) & counted.keys() for record in self._records()]
        for names in trained or [counted.keys()]:
            parts = self._sparsifying({counted[name] for name in names})
            meet_density(parts, target.value, layerwise)
        held = list(counted.values())
        counts = torch.stack([torch.count_nonzero(local(p)) for p in held])
        return float(all_reduce_counts(counts, held).sum()) / sum(p.numel() for p in held)

    def _sparsifying(self, members: set[nn.Parameter]) -> list[Part]:
        """Return the parts that make zeros of these parameters, those on entries first."""
        chained = [part for p in members for part in self._weights.elementwise.get(p, ())]
        grouped = [p for p in map(Part.trained, self._weights.grouped) if p is not None]
        parts = [*chained, *(p for p in grouped if members.issuperset(p.parameters))]
        return [part for part in parts if part.penalty.sparsifies]

    def prox_seconds(self) -> float:
        """Return the host time that the proximal steps have taken so far, in s."""
        return sum((step.prox_seconds for step in self._steps), start=0.0)

    def summary(self) -> str:
        """Return a table: every parameter, its penalties, and why the rest is left out."""
        lines = []
        for name, penalty in self.penalties.items():
            lines.append(f"{name}: {penalty}")
            lines += self.bound[name].describe() if name in self.bound else []
        penalised = self.penalised()
        total = sum(p.numel() for p in penalised)
        frozen = sum(p.numel() for p in penalised if not p.requires_grad)
        everything = sum(p.numel() for p in self.model.parameters())
        lines.append(
            f"penalised: {total:,} of {everything:,} parameters"
            + (f", {frozen:,} of them frozen: they count once they are trained" if frozen else "")
        )
        found = {name: one.entries for name, one in self.bound.items()}
        return "\n".join([*lines, "", *table(select_parameters(self.model), found)])

    def state_dict(self) -> dict[str, Any]:
        """Return what training needs again, by parameter name where there is one.

        A collective where weights are sharded. It holds five bytes for each weight that a penalty
        may make zero: the average of its gradients, and its gate.
        """
        cost = None if self._budget is None else asdict(self._budget.cost)
        return {"progress": self.progress.value, "steps": self._states(), "cost": cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, before or after `attach`.

        A budget is that of the saved training, whose latencies were measured then.
        Raises: InputError when it is of another net.
        """
        self._saved = list(state["steps"])
        if state["progress"] is not None:
            self.progress.reach(state["progress"])
        if self._budget is not None and state["cost"] is not None:
            parts = self._weights.grouped
            self._budget = resumed(self._budget, self.schedule, parts, state["cost"])
            self._weights.scale(self._budget.lam_scale)
            optimizers = [step.optimizer for step in self._steps]
            for step in self._steps:
                step.detach()
            self._steps = []
            for optimizer in optimizers:
                self.attach(optimizer)
        for place in range(len(self._steps)):
            self._restore(place)

    def _restore(self, place: int) -> None:
        """Bring one step to where the saved state left it."""
        if place < len(self._saved):
            parameters = {name: p for p, name in self._weights.names().items()}
            self._steps[place].load_state_dict(self._saved[place], parameters)

    def _records(self) -> list[dict[str, Any]]:
        """Return the state of every step, or what was kept of those that are no more."""
        names = self._weights.names()
        return [step.record(names) for step in self._steps] or self._saved

    def _states(self) -> list[dict[str, Any]]:
        """Return everything of every step, or what was kept of those that are no more."""
        names = self._weights.names()
        return [step.state_dict(names) for step in self._steps] or self._saved

    def _record_of(self, parts: Any) -> Mapping[str, Any]:
        """Return the record of the optimizer that trains most weights of some parts."""
        records = self._records() or [UNATTACHED]
        names = {piece.name for part in parts for piece in part.group_set.pieces}
        return max(records, key=lambda record: len(names.intersection(record["members"])))

    def _scale(self) -> Callable[[Part], WeightPenalty | None]:
        """Return what gives the penalty of a part at the strength of the last step."""
        records = self._records()
        owners = {name: record for record in records for name in record["members"]}
        default = records[0] if records else UNATTACHED
        scales = {
            id(r): Scale(self._factors(r["common"], r["layers"])) for r in [default, *records]
        }

        def scale(part: Part) -> WeightPenalty | None:
            names = (piece.name for piece in part.group_set.pieces)
            owner = next((owners[name] for name in names if name in owners), default)
            return scales[id(owner)](part)

        return scale

    def _factors(self, common: float | None, layers: Any = None) -> Factors:
        return Factors(common, layers, searched=self.schedule.target is not None)

    def _of_kind(self, kind: type) -> dict[str, Any]:
        return {name: p for name, p in self.penalties.items() if isinstance(p, kind)}

    def _zero(self) -> Tensor:
        parameter = next(self.model.parameters(), None)
        return torch.zeros((), device=parameter.device if parameter is not None else None)

    def _checked(self, penalty: ActivationPenalty, frames: Tensor) -> Tensor:
        if frames.shape[1] < penalty.least_frames:
            raise InputError(
                f"{type(penalty).__name__} needs {penalty.least_frames} time steps and got "
                f"embeddings with {frames.shape[1]} from "
                f"module={penalty.module or declared_embeddings(self.model)!r}. Name an earlier "
                "module, or give longer clips."
            )
        return frames


def _check_target(schedule: Schedule, penalties: Mapping[str, WeightPenalty]) -> None:
    target = schedule.target
    acting = {name: p for name, p in penalties.items() if p.sparsifies and p.lam > 0}
    if target is not None and not acting:
        raise InputError(
            f"{target.name}={target.value:g} was given, and no penalty here makes more zeros when "
            "it is stronger. Add one that does, such as L1 or GroupLasso, with lam > 0 to start "
            "from."
        )
    coarse = [p for p in acting.values() if p.layout not in COUPLED]
    if target is not None and target.is_budget and coarse:
        raise InputError(
            f"{type(coarse[0]).__name__} got {target.name}={target.value:g}, and what it makes "
            f"zero ({coarse[0].layout}) cannot be cut out of a net. Give a penalty on groups with "
            'groups="channel".'
        )


def _mean_factor(factors: Factors, sizes: Mapping[str, int]) -> float:
    """Return by how much strengths were changed: on average, where that differs between layers."""
    assert factors.common is not None, "the penalties were on"
    layers = factors.layers or {}
    mean = sum(layers.get(key, 1.0) * size for key, size in sizes.items()) / sum(sizes.values())
    return factors.common * (mean if layers else 1.0)
