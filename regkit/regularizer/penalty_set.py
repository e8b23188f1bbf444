"""The weight penalties of a model together: which may meet on one parameter, and in which order."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from regkit.errors import InputError
from regkit.optim.parts import Chain, Part
from regkit.penalties import WeightPenalty
from regkit.regularizer.bound_penalty import BoundPenalty, bind
from regkit.structure.selectors import clean_name


class PenaltySet:
    """The weight penalties of a model by name, and what they come to for each parameter.

    example: what the model is called with, for groups that are found by tracing it.
    Raises: InputError as `bind` does, and when no order of the proxes on some parameter is exact.

    Attributes:
        bound: the penalties, bound.
        elementwise: the element-wise penalties of each parameter, in order.
        grouped: the group penalties, which apply after them.
    """

    def __init__(
        self, model: nn.Module, penalties: Mapping[str, WeightPenalty], example: Any
    ) -> None:
        self.model = model
        self.bound = {name: bind(model, name, p, example) for name, p in penalties.items()}
        self.elementwise, self.grouped = _compose(list(self.bound.values()), self.names())
        self._unscaled = {n: [p.penalty for p in one.parts] for n, one in self.bound.items()}

    def scale(self, factors: Mapping[str, float]) -> None:
        """Make `lam` that which the penalties had at first, times a factor by the part's key."""
        for name, one in self.bound.items():
            parts = [
                replace(part, penalty=penalty.scaled(factors.get(part.key, 1.0)))
                for part, penalty in zip(one.parts, self._unscaled[name], strict=True)
            ]
            self.bound[name] = replace(one, parts=parts)
        self.elementwise, self.grouped = _compose(list(self.bound.values()), self.names())

    def names(self) -> dict[nn.Parameter, str]:
        """Return the names that the parameters of the model have now."""
        return {p: clean_name(name) for name, p in self.model.named_parameters()}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the penalised parameters, by the names that they had when they were bound."""
        return {key: p for one in self.bound.values() for key, p in one.parameters().items()}

    def penalised(self) -> list[nn.Parameter]:
        """Return the parameters that a penalty with lam > 0 chooses, frozen ones among them."""
        grouped = (p for part in self.grouped for p in part.parameters)
        return list(dict.fromkeys([*self.elementwise, *grouped]))

    def rebind(self) -> None:
        """Take over parameters that were put in the place of others since the penalties were bound.

        `fully_shard` does so, and optimizers are made of what it left in the model.
        """
        now = {name: p for p, name in self.names().items()}
        if any(now.get(name, p) is not p for name, p in self.named_parameters().items()):
            self.bound = {name: one.rebind(now) for name, one in self.bound.items()}
            self.elementwise, self.grouped = _compose(list(self.bound.values()), self.names())


def _compose(
    bound: Sequence[BoundPenalty], names: Mapping[nn.Parameter, str]
) -> tuple[dict[nn.Parameter, Chain], list[Part]]:
    """Return the element-wise penalties of each parameter, in order, and the group penalties.

    Penalties without strength are left out: they change nothing, and may meet any other. The groups
    of one penalty are disjoint slices, so on each parameter it counts once.
    Raises: InputError when no order of the proxes on some parameter is exact.
    """
    met: dict[nn.Parameter, dict[str, Part]] = defaultdict(dict)
    grouped: list[Part] = []
    for one in bound:
        for part in one.parts:
            if part.penalty.lam == 0:
                continue
            for parameter in part.parameters:
                met[parameter].setdefault(one.name, part)
            if part.is_grouped:
                grouped.append(part)
    chains = {}
    for parameter, by_name in met.items():
        parts = list(by_name.values())
        _check([part.penalty for part in parts], names[parameter])
        alone = [part for part in parts if not part.is_grouped]
        if alone:
            chains[parameter] = tuple(sorted(alone, key=lambda part: _rank(part.penalty)))
    return chains, grouped


def _rank(penalty: WeightPenalty) -> tuple[bool, bool, bool]:
    """Sort decoupled shrinkage first, then what composes, then the rest, then bounds."""
    return (not penalty.decoupled, not penalty.composes, _closes(penalty))


def _closes(penalty: WeightPenalty) -> bool:
    """Say whether it is a bound on single entries, which may follow any convex function of them."""
    return penalty.constraint and penalty.layout == "entries" and not penalty.composes


def _check(penalties: Sequence[WeightPenalty], parameter_name: str) -> None:
    """Refuse penalties whose proxes do not compose.

    A prox may follow one that composes where it keeps signs: for fixed signs the sum is a shift
    of the entries (Yu, NeurIPS 2013, theorem 1; for concave ones by the same shift). In one
    dimension the prox of a convex function on an interval is the clipped prox.
    """
    composing = [p for p in penalties if p.composes]
    bounds = [p for p in penalties if _closes(p)]
    others = [p for p in penalties if not (p.composes or p.decoupled or _closes(p))]
    exact = len(others) <= 1 and len(bounds) <= 1
    if bounds:
        exact = exact and all(p.layout == "entries" and p.convex for p in [*others, *composing])
    if composing:
        exact = exact and all(p.shrinks for p in others)
    if not exact:
        pair = " and ".join(type(p).__name__ for p in penalties if not p.decoupled)
        raise InputError(
            f"{pair} meet on {parameter_name!r}, and no order of their proxes is exact. Use "
            "one penalty that holds both (L1 with L2: ElasticNet; L1 with GroupLasso: the two "
            "compose; GroupLasso with L2: GroupElasticNet; two of a kind: add their lam), or "
            "give them different parameters in `params`."
        )
