"""Penalties bound to a model: what is penalised, how much it adds, and the step that acts."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.activations import FrameCollector
from regkit.composition import Composition
from regkit.errors import InputError
from regkit.optim.proximal_step import ProximalStep
from regkit.optim.residual import kkt_residual
from regkit.penalties import ActivationPenalty, WeightPenalty
from regkit.sparsity.measure import density
from regkit.strength import make_strength
from regkit.targets import declared_embeddings, embedding_module, survey, table, weights
from regkit.terms import Penalties, Term, named


class Regularizer:
    """Bind penalties to a model.

    Weight penalties act after each step of the attached optimizers, activation penalties join the
    loss:

        reg = Regularizer(model, [L1(lam=1e-4), TemporalSmoothness(lam=1e-2, of="encoder")])
        reg.attach(optimizer)
        loss = criterion(model(clip), label) + reg.activation_loss()

    penalties: one, several, or several by name.
    example: what the model is called with (a tensor, or a tuple of arguments), for groups that
        are found by tracing the model; default: `model.example_input_array`.
    num_steps: number of optimizer steps of the whole training, for the options below.
    ramp, ramp_until, target_density, layerwise, freeze_support: see `regkit.strength.Strength`.
    Raises: InputError when a selector or module name matches nothing, when two penalties meet on
        one parameter and their proxes do not compose, or when an option is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        penalties: Penalties,
        *,
        example: Any = None,
        num_steps: int | None = None,
        **strength: Any,
    ) -> None:
        self.model = model
        self.penalties = named(penalties)
        self.strength = make_strength(
            strength,
            num_steps,
            density=lambda: density(self.chosen()).total,
            layers=self,
            sparsifies=any(
                p.sparsifies and p.lam > 0 for p in self._of_kind(WeightPenalty).values()
            ),
        )
        self._steps: list[ProximalStep] = []
        self._pending: dict[str, Any] = {"momentum": {}, "steps": []}
        if example is None:
            example = getattr(model, "example_input_array", None)
        self._weights = Composition(model, self._of_kind(WeightPenalty), example)
        self._collectors = {
            name: FrameCollector(
                embedding_module(model, p.of, type(p).__name__), p.layout, p.pooled
            )
            for name, p in self._of_kind(ActivationPenalty).items()
        }
        self.latest: dict[str, Tensor] = {}

    def attach(self, optimizer: Any) -> "Regularizer":
        """Take a proximal step after every real step of this optimizer.

        Call it once for each optimizer of the model, after `fully_shard` if that is used.

        optimizer: a torch Optimizer, or Lightning's wrapper of one.
        Raises: InputError when the optimizer holds none of the penalised parameters, or has a
            regularizer already.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"attach got a {type(optimizer).__name__}; give a torch Optimizer.")
        if self.strength is not None and self.strength.num_steps < 1:
            raise InputError(
                "Regularizer does not know num_steps; a ramp, a target density and a frozen "
                "support need the number of optimizer steps of the whole training, 1 or more."
            )
        self._weights.follow()
        if self.penalised():
            step = ProximalStep(
                optimizer, self._weights.chains, self._weights.bundles, self.strength
            )
            self._steps.append(step)
            self._restore(len(self._steps) - 1)
        return self

    @property
    def terms(self) -> Mapping[str, Term]:
        """The weight penalties by name, bound to the model."""
        return self._weights.terms

    def shares(self) -> dict[str, float]:
        """Return the share of non-zero entries of each layer, or set of channels, by penalty."""
        return self._weights.shares()

    def weigh(self, factors: Mapping[str, float]) -> None:
        """Multiply `lam` by a factor in each layer, named as `shares` names them."""
        self._weights.weigh(factors)
        for step in self._steps:
            step.bind(self._weights.chains, self._weights.bundles)

    def detach(self) -> None:
        """Take everything off the optimizers and the model."""
        self._pending = self._current()
        for step in self._steps:
            step.detach()
        for collector in self._collectors.values():
            collector.remove()
        self._steps = []

    def value(self) -> Float[Tensor, ""]:
        """Return what the weight penalties add to the objective F, `lam` included.

        To be looked at, not trained on: it has no gradient, for the step acts already.
        `WeightDecay` is no part of F and adds nothing.
        """
        return sum(self.values().values(), start=self._zero())

    def values(self) -> dict[str, Float[Tensor, ""]]:
        """Return what each weight penalty adds to F, at the strength of the last step."""
        strength = self.factor() or 0.0
        return {
            name: term.value(strength)
            for name, term in self.terms.items()
            if not term.penalty.decoupled
        }

    def kkt_residual(self) -> Float[Tensor, ""]:
        """Return how far from stationary F is at these weights, from the gradients at hand.

        The length of the shortest subgradient of F, over all parameters: call it between backward
        and the optimizer's step. With the gradient of a mini-batch it holds that batch's noise.
        At the strength of the last step, without decoupled weight decay.
        """
        gradients = {p: p.grad for p in self.model.parameters() if p.grad is not None}
        return kkt_residual(gradients, self._weights.chains, self._weights.bundles, self.factor())

    def parameters(self, name: str | None = None) -> dict[str, nn.Parameter]:
        """Return the parameters of the weight penalty `name`, or of all of them, by name."""
        return (self._weights if name is None else self.terms[name]).parameters()

    def penalised(self) -> list[nn.Parameter]:
        """Return the parameters that the step acts on: chosen by a penalty with lam > 0."""
        bundles = [bundle for _, bundle in self._weights.bundles]
        grouped = (piece.parameter for bundle in bundles for piece in bundle.pieces)
        return list(dict.fromkeys([*self._weights.chains, *grouped]))

    def live_groups(self) -> dict[str, tuple[int, int]]:
        """Return by name of each group penalty how many of its groups are not zero, and of all.

        Waits for the GPU once.
        """
        counts = {
            name: term.num_live() for name, term in self.terms.items() if not term.elementwise
        }
        live = torch.stack(list(counts.values())).tolist() if counts else []
        totals = [sum(b.num_groups for _, b in self.terms[name].parts) for name in counts]
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
                    "model(...); after torch.compile, make the Regularizer before the first call."
                )
        return sum(terms.values(), start=self._zero())

    def activation_terms(self) -> dict[str, Float[Tensor, ""]]:
        """Return the activation penalties of the passes since the last call, by name.

        A penalty whose module has not run is left out; several passes are averaged.
        """
        terms = {}
        for name, penalty in self._of_kind(ActivationPenalty).items():
            passes = [self._checked(penalty, frames) for frames in self._collectors[name].take()]
            if passes:
                with torch.autocast(passes[0].device.type, enabled=False):
                    terms[name] = torch.stack([penalty.value(z.float()) for z in passes]).mean()
        self.latest.update({name: term.detach() for name, term in terms.items()})
        return terms

    def silent(self) -> list[str]:
        """Return the names of the activation penalties whose modules never ran in training."""
        return [name for name, c in self._collectors.items() if c.num_calls == 0]

    def chosen(self) -> dict[str, nn.Parameter]:
        """Return the parameters that count for density: the penalised, else all weights."""
        return self.parameters() if self.terms else weights(self.model)

    def factor(self) -> float | None:
        """Return what every `lam` was multiplied by at the last step; None once they are off."""
        step = max((step.num_steps for step in self._steps), default=0)
        step = max([step, *self._pending["steps"]])
        return 1.0 if self.strength is None or step == 0 else self.strength(step)

    def lams(self) -> dict[str, float]:
        """Return the strength of every penalty at the last step."""
        factor = self.factor() or 0.0
        weak = {name: term.penalty.at(factor) for name, term in self.terms.items()}
        return {name: penalty.lam for name, penalty in {**self.penalties, **weak}.items()}

    def layer_lams(self) -> dict[str, float]:
        """Return the strength in each layer that has one of its own, named as in `shares`."""
        common = self.lams()
        return {
            f"{name}/{layer}": common[name] * factor
            for name, term in self.terms.items()
            for layer, factor in term.factors.items()
        }

    def seconds(self) -> float:
        """Return the host time that the proximal steps have taken so far, in s."""
        return sum((step.seconds for step in self._steps), start=0.0)

    def summary(self) -> str:
        """Return a table: every parameter, its penalties, and why the rest is left out."""
        lines = []
        for name, penalty in self.penalties.items():
            lines.append(f"{name}: {penalty}")
            lines += self.terms[name].lines() if name in self.terms else []
        total = sum(p.numel() for p in self.penalised())
        everything = sum(p.numel() for p in self.model.parameters())
        lines.append(f"penalised: {total:,} of {everything:,} parameters")
        found = {name: term.entries for name, term in self.terms.items()}
        return "\n".join([*lines, "", *table(survey(self.model), found)])

    def state_dict(self) -> dict[str, Any]:
        """Return what training needs again: numbers, by parameter name where there is one."""
        return self._current()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, before or after `attach`."""
        self._pending = {"momentum": {}, "steps": [], **state}
        if self.strength is not None and "strength" in state:
            self.strength.load_state_dict(state["strength"])
        for place in range(len(self._steps)):
            self._restore(place)

    def _restore(self, place: int) -> None:
        """Bring one step to where the saved state left it."""
        step, names = self._steps[place], self._weights.names()
        saved = self._pending["momentum"]
        step.momentum |= {p: saved[names[p]] for p in step.members if names[p] in saved}
        if place < len(self._pending["steps"]):
            step.num_steps = self._pending["steps"][place]

    def _current(self) -> dict[str, Any]:
        names = self._weights.names()
        momentum = {
            names[p]: c for step in self._steps for p, c in step.momentum.items() if p in names
        }
        steps = [step.num_steps for step in self._steps] or self._pending["steps"]
        state = {"momentum": {**self._pending["momentum"], **momentum}, "steps": steps}
        return state if self.strength is None else state | {"strength": self.strength.state_dict()}

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
                f"of={penalty.of or declared_embeddings(self.model)!r}. Name an earlier module, "
                "or give longer clips."
            )
        return frames
