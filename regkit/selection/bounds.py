"""From which strength on a penalty costs more than a model can gain."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Int
from torch import Tensor

from regkit.errors import InputError
from regkit.penalties import ActivationPenalty, Penalty, WeightPenalty
from regkit.regularizer.regularizer import Regularizer
from regkit.selection.untouched import untouched

KINDS = ("exact", "per layer", "one step", "budget")
# Halvings of the logarithm of a strength: float32 values resolve no more.
NUM_HALVINGS = 60
PRECISION = 1e-6  # relative, of a strength that is searched for


@dataclass(frozen=True)
class Bound:
    """A strength from which on something holds.

    kind: "exact" (a fact about F), "per layer" (a heuristic for deep nets: the layer by itself, the
        others as they are), "one step" (a fact about the first step), "budget" (a fact about all
        minimisers of F).
    of: what it was computed for: penalty, layer.
    lam: None where there is no such strength.
    why: what holds from there on, or why there is none.
    """

    kind: str
    of: str
    lam: float | None
    why: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS


@dataclass(frozen=True)
class Bounds:
    """What was computed, from the strongest bound to the weakest; printed as a table."""

    bounds: Sequence[Bound]

    @property
    def lam(self) -> float | None:
        """Return the largest of them, None where there is none."""
        return max((b.lam for b in self.bounds if b.lam is not None), default=None)

    def __str__(self) -> str:
        rows = [("lam", "kind", "of", "from there on")]
        rows += [("-" if b.lam is None else f"{b.lam:.3g}", b.kind, b.of, b.why) for b in self]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=True)), row[3]])
            for row in rows
        )

    def __iter__(self):
        def place(bound: Bound) -> float:
            return math.inf if bound.lam is None else -bound.lam

        return iter(sorted(self.bounds, key=place))


def zero_loss(known: int | Int[Tensor, " videos"]) -> float:
    """Return the cross-entropy of the best constant scores: what knowing nothing costs.

    The entropy of the shares of the classes, in nats; log(number of classes) at most.

    known: the labels, or the number of classes where they are not at hand.
    Raises: InputError when there is no label, or fewer than 2 classes.
    """
    if isinstance(known, int):
        if known < 2:
            raise InputError(f"zero_loss got {known} classes; give 2 or more, or the labels.")
        return math.log(known)
    if known.numel() == 0:
        raise InputError("zero_loss got no labels; give those that are trained on.")
    counts = known.bincount().double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


def budget(
    regularizer: Regularizer,
    zero_loss: float | int,
    *,
    names: Sequence[str] | None = None,
    clip: Tensor | None = None,
) -> float:
    """Return the strength at which the weights, as they are, cost as much as knowing nothing.

    lam with  value(w; lam) = zero_loss;  for a value lam psi(w) that is  zero_loss / psi(w).

    Every global minimiser w* of F = loss + value has  value(w*; lam) <= zero_loss:  F at zero
    weights, with constant scores from the last bias, is zero_loss, and a loss is >= 0. So psi(w*)
    <= zero_loss / lam: above the budget a minimiser has to be smaller than the weights are now.
    No data is needed. Where an initialisation keeps the scale of the weights, as the usual ones
    do, the budget says in which units `lam` is to be thought of for a model of this size.

    zero_loss: F at zero weights; see `zero_loss`.
    names: of the penalties that share this strength; default: all of them. Constraints among them
        cost nothing, whatever their `lam`, and do not count.
    clip: what the model is called with, for penalties on activations.
    Raises: InputError when nothing named has a scale, when a `lam` is 0, when a clip is missing or
        when the weights cost nothing.
    """
    chosen = _scaled(regularizer, names)
    if not 0 < zero_loss < math.inf:
        raise InputError(f"budget got zero_loss={zero_loss!r}; give a number > 0.")
    psi = sum(
        (_activity(regularizer, name, p, clip) for name, p in chosen if _active(p)), start=0.0
    )
    bound = [(regularizer.bound[name], p.lam) for name, p in chosen if not _active(p)]

    def cost(lam: float) -> float:
        weighed = (
            one.value(lambda part, scale=lam / own: part.penalty.scaled(scale))
            for one, own in bound
        )
        return lam * psi + sum(map(float, weighed))

    who = ", ".join(name for name, _ in chosen)
    if not 0 < cost(1.0) < math.inf:
        raise InputError(
            f"budget: {who} costs {cost(1.0):g} at the weights as they are, which sets no scale. "
            "Give lam as a number."
        )
    return _reaching(cost, float(zero_loss))


def _scaled(regularizer: Regularizer, names: Sequence[str] | None) -> list[tuple[str, Penalty]]:
    """Return the penalties that count, by name."""
    names = list(regularizer.penalties) if names is None else names
    if unknown := [name for name in names if name not in regularizer.penalties]:
        raise InputError(
            f"budget got the name {unknown[0]!r}; there are {', '.join(regularizer.penalties)}."
        )
    chosen = [(name, regularizer.penalties[name]) for name in names]
    for name, p in chosen:
        if isinstance(p, WeightPenalty) and p.decoupled:
            raise InputError(
                f"budget: {name!r} is no part of the objective F, and no strength of it follows "
                "from F. Give its lam as a number."
            )
        if p.lam == 0:
            raise InputError(f"budget: {name!r} has lam=0; make it with any lam > 0, such as 1.0.")
    scaled = [(n, p) for n, p in chosen if not (isinstance(p, WeightPenalty) and p.constraint)]
    if not scaled:
        raise InputError(
            f"budget: {', '.join(names) or 'no penalty'} has no strength that could be too large: "
            "a constraint holds at any lam > 0. Give lam as a number, 1.0 for instance."
        )
    return scaled


def _active(penalty: Penalty) -> bool:
    return isinstance(penalty, ActivationPenalty)


def _activity(regularizer: Regularizer, name: str, penalty: Penalty, clip: Tensor | None) -> float:
    """Return the value of a penalty on activations at lam = 1."""
    model = regularizer.model
    if clip is None:
        raise InputError(
            f"budget: {name!r} acts on what the model computes; give clip=<a batch as in training>."
        )
    # On a copy, which the hooks of the regularizer itself do not listen to.
    copied = copy.deepcopy(model).train()
    probe = Regularizer(copied, {name: replace(penalty, lam=1.0)})
    with untouched(copied):
        copied(clip)
        return float(probe.activation_loss().detach())


def _reaching(cost: Callable[[float], float], target: float) -> float:
    """Return the strength at which a cost that rises with it reaches the target."""
    # Exact at once where the cost is lam psi; MCP and SCAD bend.
    lam = target / cost(1.0)
    low = high = lam
    while cost(low) > target * (1 + PRECISION):
        low /= 2
    while cost(high) < target * (1 - PRECISION):
        high *= 2
        if not math.isfinite(high):
            raise InputError("budget: at no strength do these weights cost that much.")
    for _ in range(NUM_HALVINGS if high > low else 0):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) < target else (low, middle)
        if high <= low * (1 + PRECISION):
            break
    return low if low == high else math.sqrt(low * high)
