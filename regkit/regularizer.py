"""Penalties bound to a model: what is penalised, how much it adds, and the step that acts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.activations import FrameCollector
from regkit.errors import InputError
from regkit.optim.proximal_step import Chain, ProximalStep
from regkit.penalties import ActivationPenalty, Penalty, WeightPenalty
from regkit.targets import Entry, clean_name, declared_embeddings, find_module, survey, table

Penalties = Penalty | Sequence[Penalty] | Mapping[str, Penalty]


class Regularizer:
    """Bind penalties to a model.

    Weight penalties act after each step of the attached optimizers, activation penalties join the
    loss:

        reg = Regularizer(model, [L1(lam=1e-4), TemporalSmoothness(lam=1e-2, of="encoder")])
        reg.attach(optimizer)
        loss = criterion(model(clip), label) + reg.activation_loss()

    penalties: one, several, or several by name.
    Raises: InputError when a selector or module name matches nothing, or when two penalties meet
        on one parameter and their proxes do not compose.
    """

    def __init__(self, model: nn.Module, penalties: Penalties) -> None:
        self.model = model
        self.penalties = named(penalties)
        self._steps: list[ProximalStep] = []
        self._pending: dict[str, float] = {}
        self._surveys = {
            name: self._survey(penalty) for name, penalty in self._of_kind(WeightPenalty).items()
        }
        self._chains = self._make_chains()
        self._collectors = {
            name: FrameCollector(self._embedding_module(penalty), penalty.layout)
            for name, penalty in self._of_kind(ActivationPenalty).items()
        }
        self.latest: dict[str, Tensor] = {}

    def attach(self, optimizer: Any) -> "Regularizer":
        """Take a proximal step after every real step of this optimizer.

        Call it once for each optimizer of the model.

        optimizer: a torch Optimizer, or Lightning's wrapper of one.
        Raises: InputError when the optimizer holds none of the penalised parameters, or has a
            regularizer already.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"attach got a {type(optimizer).__name__}; give a torch Optimizer.")
        if self._chains:
            step = ProximalStep(optimizer, self._chains)
            names = self._names()
            for p in self._chains:
                if names[p] in self._pending:
                    step.momentum[p] = self._pending[names[p]]
            self._steps.append(step)
        return self

    def detach(self) -> None:
        """Take everything off the optimizers and the model."""
        for step in self._steps:
            step.detach()
        for collector in self._collectors.values():
            collector.remove()
        self._pending = self._momentum()
        self._steps = []

    def value(self) -> Float[Tensor, ""]:
        """Return what the weight penalties add to the objective F, `lam` included.

        To be looked at, not trained on: it has no gradient, for the step acts already.
        `WeightDecay` is no part of F and adds nothing.
        """
        return sum(self.values().values(), start=self._zero())

    @torch.no_grad()
    def values(self) -> dict[str, Float[Tensor, ""]]:
        """Return what each weight penalty adds to F."""
        return {
            name: sum(
                (_plain(penalty.value(_full(p))) for p in self.parameters(name).values()),
                start=self._zero(),
            )
            for name, penalty in self._of_kind(WeightPenalty).items()
            if not penalty.decoupled
        }

    def parameters(self, name: str | None = None) -> dict[str, nn.Parameter]:
        """Return the parameters of the weight penalty `name`, or of all of them, by name."""
        surveys = self._surveys.values() if name is None else [self._surveys[name]]
        return {e.name: e.parameter for entries in surveys for e in entries if e.chosen}

    def penalised(self) -> list[nn.Parameter]:
        """Return the parameters that the step acts on: chosen by a penalty with lam > 0."""
        return list(self._chains)

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
        if self._surveys:
            return self.parameters()
        return {e.name: e.parameter for e in survey(self.model) if e.chosen}

    def seconds(self) -> float:
        """Return the host time that the proximal steps have taken so far, in s."""
        return sum((step.seconds for step in self._steps), start=0.0)

    def summary(self) -> str:
        """Return a table: every parameter, its penalties, and why the rest is left out."""
        lines = [f"{name}: {penalty}" for name, penalty in self.penalties.items()]
        total = sum(p.numel() for p in self._chains)
        everything = sum(p.numel() for p in self.model.parameters())
        lines.append(f"penalised: {total:,} of {everything:,} parameters")
        return "\n".join([*lines, "", *table(survey(self.model), self._surveys)])

    def state_dict(self) -> dict[str, Any]:
        """Return what training needs again: numbers by parameter name."""
        return {"momentum": self._momentum()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, before or after `attach`."""
        self._pending = dict(state["momentum"])
        names = self._names()
        for step in self._steps:
            for p in step.chains:
                if names[p] in self._pending:
                    step.momentum[p] = self._pending[names[p]]

    def _momentum(self) -> dict[str, float]:
        names = self._names()
        current = {
            names[p]: c
            for step in self._steps
            for p, c in step.momentum.items()
            if p in self._chains
        }
        return {**self._pending, **current}

    def _names(self) -> dict[nn.Parameter, str]:
        return {p: clean_name(name) for name, p in self.model.named_parameters()}

    def _of_kind(self, kind: type) -> dict[str, Any]:
        return {name: p for name, p in self.penalties.items() if isinstance(p, kind)}

    def _zero(self) -> Tensor:
        parameter = next(self.model.parameters(), None)
        return torch.zeros((), device=parameter.device if parameter is not None else None)

    def _survey(self, penalty: WeightPenalty) -> list[Entry]:
        entries = survey(self.model, penalty.on)
        if not any(e.chosen for e in entries):
            raise InputError(
                f"{type(penalty).__name__}: {type(self.model).__name__} has no parameter to "
                "penalise: no weight of a convolution, linear, attention or recurrent layer is "
                "left. Name parameters in `on`."
            )
        return entries

    def _make_chains(self) -> dict[nn.Parameter, Chain]:
        met: dict[nn.Parameter, list[str]] = defaultdict(list)
        for name, entries in self._surveys.items():
            for e in entries:
                if e.chosen and self.penalties[name].lam > 0:
                    met[e.parameter].append(name)
        names = self._names()
        return {p: self._chain(found, names[p]) for p, found in met.items()}

    def _chain(self, names: list[str], parameter_name: str) -> Chain:
        """Order the penalties of one parameter so that the proxes compose exactly."""
        penalties: list[WeightPenalty] = [self._of_kind(WeightPenalty)[n] for n in names]
        last = [p for p in penalties if not p.composes and not p.decoupled]
        if len(last) > 1:
            pair = " and ".join(type(p).__name__ for p in last)
            raise InputError(
                f"{pair} meet on {parameter_name!r}, and no order of their proxes is exact. Use "
                "one penalty that holds both (L1 with L2: ElasticNet; two of a kind: add their "
                "lam), or give them different parameters in `on`."
            )
        return tuple(sorted(penalties, key=lambda p: (not p.decoupled, not p.composes)))

    def _embedding_module(self, penalty: ActivationPenalty) -> nn.Module:
        who = type(penalty).__name__
        name = penalty.of or declared_embeddings(self.model)
        if name is None:
            raise InputError(
                f"{who} got no `of`, and {type(self.model).__name__} does not say where its frame "
                "embeddings are. Give of=<a name from model.named_modules()>."
            )
        return find_module(self.model, name, who)

    def _checked(self, penalty: ActivationPenalty, frames: Tensor) -> Tensor:
        if frames.shape[1] < penalty.least_frames:
            raise InputError(
                f"{type(penalty).__name__} needs {penalty.least_frames} time steps and got "
                f"embeddings with {frames.shape[1]} from "
                f"of={penalty.of or declared_embeddings(self.model)!r}. Name an earlier module, "
                "or give longer clips."
            )
        return frames


def named(penalties: Penalties) -> dict[str, Penalty]:
    """Return penalties by name; without names, by the module that defines each."""
    if isinstance(penalties, Penalty):
        penalties = [penalties]
    by_name: dict[str, Penalty] = {}
    if isinstance(penalties, Mapping):
        by_name.update(penalties)
    else:
        for p in penalties:
            stem = type(p).__module__.rpartition(".")[2]
            count = sum(type(p) is type(other) for other in by_name.values())
            by_name[f"{stem}_{count + 1}" if count else stem] = p
    for name, p in by_name.items():
        if not isinstance(p, Penalty):
            raise InputError(
                f"Regularizer got {p!r} as penalty {name!r}; give penalties such as L1(lam=1e-4)."
            )
    return by_name


def _full(parameter: Tensor) -> Tensor:
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def _plain(value: Tensor) -> Tensor:
    """Return the whole of a value that is spread over ranks (DTensor)."""
    full_tensor = getattr(value, "full_tensor", None)
    return full_tensor() if full_tensor is not None else value
