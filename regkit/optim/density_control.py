"""The strengths that bring a density to its target: a feedback, and a search within a step.

Nothing here knows a model. Densities come in by name, factors go out by the same names: one,
GLOBAL, for all weights of an optimizer, and with `layerwise` one for each layer beside it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from regkit.optim.schedule import Schedule

# The name of the strength that all layers share.
GLOBAL = ""
# Lowest and highest density, by the name of what has a strength.
Bounds = Mapping[str, tuple[float, float]]
Densities = Mapping[str, float]
# Share of training between two looks at the density; each waits for the device once.
INTERVAL = 1 / 400
# Gains of the feedback on log(lam): per unit of density and training, and per unit of density.
INTEGRAL, PROPORTIONAL = 60.0, 3.0
# How often a step is tried for a density, and how often for the strength to start from, which may
# lie a hundred orders of magnitude away.
NUM_TRIALS, FIRST_TRIALS = 14, 24
# A given lam that is further than this from where the search would start is not started from.
FAR = 1e4


@dataclass(frozen=True)
class Factors:
    """What `lam` is multiplied by at one step.

    common: in all layers; None: the penalties are off, and only constraints hold.
    layers: beside it, by the key of a part; 1 where none is given.
    searched: they were found for a density, and hold for penalties that make zeros alone.
    """

    common: float | None = 1.0
    layers: Mapping[str, float] | None = None
    searched: bool = False

    def of(self, key: str) -> float | None:
        """Return the factor of one part."""
        if self.common is None or self.layers is None:
            return self.common
        return self.common * self.layers.get(key, 1.0)


class DensityController:
    """Find the factors at which densities come down to the target of a schedule.

    log(lam) follows the excess of the density over the wanted course by a proportional and an
    integral term. No step may end below the target: a channel that is all zero gets no gradient,
    and cannot come back. In the closing phase the strength of every step is solved for.

    targets: what densities come down to, by name; GLOBAL for those that are not named. By default
        the target density of the schedule.
    """

    def __init__(self, schedule: Schedule, targets: Densities | None = None) -> None:
        self._schedule = schedule
        self._targets = {GLOBAL: schedule.target_density or 0.0} if targets is None else targets
        self._feedbacks: dict[str, _Feedback] = {GLOBAL: _Feedback()}
        self._observed: float | None = None
        self._last: Densities = {}
        self._entered: Densities | None = None

    @property
    def factors(self) -> Factors:
        """The factors that hold now."""
        found = {name: feedback.factor for name, feedback in self._feedbacks.items()}
        common = found.pop(GLOBAL)
        return Factors(common, found if self._schedule.layerwise else None, searched=True)

    def named(self, names: Collection[str]) -> dict[str, float]:
        """Return the factors that a search may change, by name; 1 where none is known yet."""
        return {name: self._feedbacks.get(name, _Feedback()).factor for name in names}

    def is_new(self) -> bool:
        """Say whether no density has been observed yet."""
        return self._observed is None

    def begin(self, progress: float, critical: Mapping[str, float], num_steps: float) -> None:
        """Choose where the search starts, from the strengths that would do in a single step.

        A given `lam` stays unless it is absurd: too weak to show within training, or so strong
        that the first step kills all.

        critical: factors at which one step leaves the target density.
        num_steps: number of steps in which the density is to fall.
        """
        self._observed = progress
        for name, factor in critical.items():
            feedback = self._feedbacks.setdefault(name, _Feedback())
            start = math.log(factor) - math.log(max(num_steps, 1.0))
            if feedback.log < start - math.log(FAR) or feedback.log > math.log(factor):
                feedback.log = start

    def is_due(self, progress: float, stride: float) -> bool:
        """Say whether the density should be observed after the step that ends at `progress`.

        stride: progress that one step makes.
        """
        begin, end = self._schedule.closing
        if self._observed is None or self._entered is not None or progress > end:
            return False
        return progress + stride > begin or progress >= (self._observed or 0.0) + INTERVAL

    def observe(self, progress: float, densities: Densities) -> None:
        """Take in the densities that a step has ended with, and move the factors.

        densities: of all weights, under GLOBAL, and by layer where each has a strength.
        """
        passed = progress - (self._observed or 0.0)
        self._observed = progress
        whole = densities[GLOBAL]
        layers = {name: share for name, share in densities.items() if name != GLOBAL}
        self._last = layers if self._schedule.layerwise else {GLOBAL: whole}
        wanted = self._schedule.wanted(progress, self._targets[GLOBAL])
        self._feedbacks[GLOBAL].follow(whole - wanted, passed)
        for name, share in layers.items():
            self._feedbacks.setdefault(name, _Feedback()).follow(share - whole, passed)

    def bounds(self, progress: float, stride: float, names: Collection[str]) -> Bounds:
        """Return the densities between which a step shall end, one with the penalty on.

        progress: after the step; stride: what it adds to it, so that the last step is known.
        names: of what has a factor now.
        """
        begin, end = self._schedule.closing
        targets = {n: self._targets.get(n, self._targets[GLOBAL]) for n in names}
        if progress <= begin:
            return {name: (target, 1.0) for name, target in targets.items()}
        # Down to the target in the first half of the closing phase; at it in the second, and in
        # any case in the last step before its end.
        left = max(2 * (end - progress) / (end - begin) - 1, 0.0)
        left = 0.0 if progress + stride > end else left
        entered = self._entered or self._last
        wanted = {n: t + left * (entered.get(n, t) - t) for n, t in targets.items()}
        return {name: (share, share) for name, share in wanted.items()}

    def adopt(self, factors: Mapping[str, float], closing: bool) -> None:
        """Go on from the factors that a step was solved with.

        closing: whether it was one of the closing phase, which then has begun.
        """
        for name, factor in factors.items():
            self._feedbacks.setdefault(name, _Feedback()).log = math.log(factor)
        if closing and self._entered is None:
            self._entered = self._last

    def state_dict(self) -> dict[str, Any]:
        """Return what training needs again."""
        return {
            "observed": self._observed,
            "last": dict(self._last),
            "entered": None if self._entered is None else dict(self._entered),
            "feedbacks": {name: (f.log, f.excess) for name, f in self._feedbacks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._observed = state["observed"]
        self._last, self._entered = state["last"], state["entered"]
        self._feedbacks = {name: _Feedback(*pair) for name, pair in state["feedbacks"].items()}


@dataclass
class _Feedback:
    """A factor that follows the excess of a density: its logarithm, and the last excess."""

    log: float = 0.0
    excess: float = 0.0

    @property
    def factor(self) -> float:
        return math.exp(self.log)

    def follow(self, excess: float, passed: float) -> None:
        """Take in what there is too much now, after a share of training has passed."""
        self.log += INTEGRAL * passed * excess + PROPORTIONAL * (excess - self.excess)
        self.excess = excess


def solve(
    bounds: Bounds,
    factors: Mapping[str, float],
    attempt: Callable[[Mapping[str, float]], Densities],
    num_trials: int = NUM_TRIALS,
) -> dict[str, float]:
    """Attempt a step until it ends with densities within bounds, or as near as they come.

    A stronger penalty leaves fewer. The logarithm of each factor is bracketed by strides that
    double, then halved; each acts on its own weights alone, so that all are searched for at once.
    Where none will do, the nearest density is taken, and 0 only where nothing else is to be had.

    bounds: of the density, by the name of what has a factor; what is not named stays as it is.
    attempt: takes the step at these factors, from the same start each time, and returns the
        densities.
    Returns: the factors of the last attempt.
    """
    brackets = {name: Bracket(*bounds[name], factors[name]) for name in bounds}
    tried = dict(factors)
    for _ in range(num_trials):
        densities = attempt(tried)
        for name, bracket in brackets.items():
            bracket.update(densities[name])
        if all(bracket.is_met for bracket in brackets.values()):
            return tried
        tried |= {name: bracket.next() for name, bracket in brackets.items()}
    best = dict(factors) | {name: bracket.best for name, bracket in brackets.items()}
    attempt(best)
    return best


class Bracket:
    """One factor that is searched for: between what it lies, and the best so far.

    low, high: bounds of the density. factor: to try first.
    """

    def __init__(self, low: float, high: float, factor: float) -> None:
        self.low, self.high = low, high
        self.best = factor
        self._log = math.log(factor)
        self._weak, self._strong = -math.inf, math.inf
        self._stride = math.log(4.0)
        self._miss = (math.inf, math.inf)

    @property
    def is_met(self) -> bool:
        """Say whether the best factor leaves a density within the bounds."""
        return self._miss[1] <= self.low / 1000

    def update(self, density: float) -> None:
        """Take in the density that the factor tried last has left."""
        above, below = max(density - self.high, 0.0), max(self.low - density, 0.0)
        # What is all zero may not come back: anything else is nearer.
        miss = (float(density == 0), above + below)
        # Of equal misses the weaker penalty: at the edge a survivor would be worn to nothing. Where
        # weaker ones bring nothing back, zeros are held, and the strength stays.
        weaker = miss == self._miss and self._log < math.log(self.best) and above > 0
        if miss < self._miss or weaker:
            self._miss, self.best = miss, math.exp(self._log)
        if above > 0:
            self._weak = self._log
        elif below > 0 or self._strong == math.inf:
            self._strong = self._log

    def next(self) -> float:
        """Return the factor to try next; the best one once the bounds are met."""
        if self.is_met:
            self._log = math.log(self.best)
        elif math.inf in (self._strong, -self._weak):
            self._log += self._stride if self._strong == math.inf else -self._stride
            self._log = min(max(self._log, -600.0), 600.0)
            self._stride *= 2
        else:
            self._log = (self._weak + self._strong) / 2
        return math.exp(self._log)
