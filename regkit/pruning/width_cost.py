"""What a net costs, as a polynomial of how many channels it keeps: FLOPs, parameters, latency."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regkit.errors import InputError
from regkit.pruning.counts import num_flops, num_parameters
from regkit.pruning.latency import latency
from regkit.structure.channels import Channels, Coupling
from regkit.structure.removal import remove_channels
from regkit.structure.replica import fixed_seed, outputs, replica, unwrapped

# Of a count, relative to the whole, that is rounding; what is more is no polynomial.
ROUNDING = 1e-9
# Widths, beside those that it is fitted to, on which a cost is checked.
NUM_CHECKS = 3
# Seconds in which one of the widths is measured beside the whole net.
BUDGET_S = 0.4

Measure = Callable[[nn.Module], int | float]
Widths = Mapping[str, int | float]


@dataclass(frozen=True)
class WidthCost:
    """The cost of a net whose sets of channels keep fewer: a polynomial of degree 2.

    A layer costs a product of its widths, so a cost is a constant, a term for each set, and one for
    each pair of sets that meet in a weight, all of the shares of channels that stay. One channel
    stays at least, and of sets that a recurrent layer keeps equally wide the widest counts.

    units: names of the sets that are equally wide; most are alone. channels: of each unit.
    terms: the units that are multiplied, with the coefficient, as shares of `whole`.
    whole: cost of the net with all channels: FLOPs, parameters or seconds.
    error: largest difference of widths that it was not fitted to, as a share of `whole`.
    multiple_of: widths count as the next multiple of it, for that is what hardware runs.
    """

    units: tuple[tuple[str, ...], ...]
    channels: tuple[int, ...]
    terms: tuple[tuple[tuple[int, ...], float], ...]
    whole: float
    error: float = 0.0
    multiple_of: int = 1

    def share(self, widths: Widths) -> float:
        """Return what a net costs that keeps so many channels, as a share of the whole.

        widths: by the name of the set; those that are not named keep all.
        """
        found = [self._width(place, widths) for place in range(len(self.units))]
        shares = [width / count for width, count in zip(found, self.channels, strict=True)]
        return sum(f * math.prod(shares[place] for place in term) for term, f in self.terms)

    def _width(self, place: int, widths: Widths) -> float:
        count, step = self.channels[place], self.multiple_of
        width = max(widths.get(name, count) for name in self.units[place])
        width = math.ceil(width / step - 1e-9) * step if step > 1 else width
        return float(min(max(width, 1), count))

    def channel_costs(self) -> dict[str, float]:
        """Return what one channel of each set costs in the whole net, as a share of it."""
        return {
            name: sum(f * term.count(place) / count for term, f in self.terms)
            for place, (unit, count) in enumerate(zip(self.units, self.channels, strict=True))
            for name in unit
        }

    def lowest(self, free: Sequence[str]) -> float:
        """Return the share that is left when one channel stays of each of these sets."""
        return self.share(dict.fromkeys(free, 1))

    def even_widths(self, share: float, free: Sequence[str]) -> dict[str, int]:
        """Return widths of these sets at which the net costs a share, as nearly alike as they go.

        All keep the same share of their channels, rounded down to a multiple; then, where the
        rounding has cut most, the next multiple, as long as that comes nearer.
        """
        units = [p for p, unit in enumerate(self.units) if any(name in free for name in unit)]
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            above = self.share(self._named({p: middle * self.channels[p] for p in units})) > share
            low, high = (low, middle) if above else (middle, high)
        exact = {p: low * self.channels[p] for p in units}
        step = self.multiple_of
        least = {p: min(step, self.channels[p]) for p in units}
        widths = {p: max(int(exact[p] + 1e-9) // step * step, least[p]) for p in units}
        tried = [widths]
        for p in sorted(units, key=lambda p: (widths[p] - exact[p]) / self.channels[p]):
            widths = widths | {p: min(widths[p] + step, self.channels[p])}
            tried.append(widths)
        best = min(tried, key=lambda each: abs(self.share(self._named(each)) - share))
        return {name: int(width) for name, width in self._named(best).items()}

    def _named(self, widths: Mapping[int, int | float]) -> dict[str, int | float]:
        return {name: width for p, width in widths.items() for name in self.units[p]}


def flops_cost(model: nn.Module, example: Any, coupling: Coupling) -> WidthCost:
    """Return the FLOPs of one run on the example, as a function of widths; exact.

    Raises: InputError when they are no polynomial of the widths.
    """
    net, inputs = _on_meta(model, example)
    return _counted(net, coupling, lambda one: num_flops(one, inputs), "FLOPs")


def parameters_cost(model: nn.Module, example: Any, coupling: Coupling) -> WidthCost:
    """Return the number of parameters as a function of widths; exact."""
    del example  # counts need none; the three of a kind are called alike
    net = replica(unwrapped(model)).to("meta")
    return _counted(net, coupling, num_parameters, "parameters")


def latency_cost(model: nn.Module, example: Any, coupling: Coupling) -> WidthCost:
    """Return the time of one run on the example, in s on this device, as a function of widths.

    Each width is measured side by side with the whole net, about a second for each set of channels
    and each pair of them. No term of the fit falls when a width grows.
    """
    whole = replica(unwrapped(model))
    alone = latency({"whole": whole}, example)["whole"].median

    def measure(net: nn.Module) -> float:
        times = latency({"whole": whole, "cut": net}, example, BUDGET_S)
        return times["cut"].median / times["whole"].median

    design = _Design(coupling)
    points, checks = design.points(), design.checks()
    measured = [design.measured(whole, point, measure) for point in points]
    factors = _non_negative(design.matrix(points), np.array(measured))
    told = [design.measured(whole, point, measure) for point in checks]
    error = float(np.abs(design.matrix(checks) @ factors - told).max()) if checks else 0.0
    return design.cost(factors / factors.sum(), alone, error)


def _counted(net: nn.Module, coupling: Coupling, measure: Measure, what: str) -> WidthCost:
    design = _Design(coupling)
    points, checks = design.points(), design.checks()
    whole = float(measure(net))
    counts = np.array([design.measured(net, point, measure) for point in points]) / whole
    factors = np.linalg.solve(design.matrix(points), counts)
    told = np.array([design.measured(net, point, measure) for point in checks]) / whole
    if checks and np.abs(design.matrix(checks) @ factors - told).max() > ROUNDING:
        raise InputError(
            f"{type(net).__name__}: its {what} are no sum of products of two widths, so that a "
            "budget of them cannot be aimed at. Give target_density, and look at what "
            "regkit.remaining counts."
        )
    return design.cost(factors, whole)


class _Design:
    """Which widths are measured, and which terms a cost has."""

    def __init__(self, coupling: Coupling) -> None:
        self._units = _units(coupling)
        self._full = np.array([unit[0].num_groups for unit in self._units])
        pairs = sorted(p for p in _meeting(self._units) if p[0] != p[1] or self._full[p[0]] > 2)
        alone = [(place,) for place in range(len(self._units))]
        self._terms: list[tuple[int, ...]] = [(), *alone, *pairs]

    def points(self) -> list[np.ndarray]:
        """Return as many widths as there are terms, such that each of these is told."""
        half = np.maximum(self._full // 2, 1)
        other = np.where(half > 1, half // 2, (self._full + half + 1) // 2)
        points = []
        for term in self._terms:
            widths = self._full.copy()
            for place in term:
                widths[place] = (other if len(term) == 2 and term[0] == term[1] else half)[place]
            points.append(widths)
        return points

    def checks(self) -> list[np.ndarray]:
        """Return widths that are drawn, to check a cost on."""
        draw = np.random.default_rng(0)
        many = NUM_CHECKS if self._units else 0
        return [draw.integers(1, self._full, endpoint=True) for _ in range(many)]

    def matrix(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """Return the terms of each point."""
        shares = np.array(points) / self._full
        return np.array([[np.prod(one[list(term)]) for term in self._terms] for one in shares])

    def measured(self, net: nn.Module, widths: np.ndarray, measure: Measure) -> float:
        """Return the cost of a copy of a net that keeps so many channels."""
        copy = replica(net)
        dead = []
        for unit, width in zip(self._units, widths, strict=True):
            gone = torch.arange(unit[0].num_groups) >= int(width)
            dead += [(channels, gone) for channels in unit]
        remove_channels(copy, dead)
        return float(measure(copy))

    def cost(self, factors: np.ndarray, whole: float, error: float = 0.0) -> WidthCost:
        """Return the cost with these coefficients."""
        names = tuple(tuple(c.name for c in unit) for unit in self._units)
        terms = tuple(zip(self._terms, map(float, factors), strict=True))
        return WidthCost(names, tuple(map(int, self._full)), terms, whole, error)


def _units(coupling: Coupling) -> list[list[Channels]]:
    """Return the sets of channels, together those that keep equally many."""
    units: dict[tuple[str, bool], list[Channels]] = defaultdict(list)
    for c in coupling.channels:
        units[(c.name, False) if c.together is None else (c.together, True)].append(c)
    return list(units.values())


def _meeting(units: Sequence[Sequence[Channels]]) -> set[tuple[int, int]]:
    """Return the pairs of units that lie along different axes of one weight, a unit with itself."""
    axes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for place, unit in enumerate(units):
        for s in (s for channels in unit for s in channels.slices):
            axes[s.tensor][s.axis].add(place)
    met = set()
    for by_axis in axes.values():
        for (one, first), (other, second) in product(by_axis.items(), repeat=2):
            if one < other:
                met |= {(min(i, j), max(i, j)) for i, j in product(first, second)}
    return met


def _on_meta(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """Return a copy of a net and its example without memory, or with it where it needs some."""
    net = replica(unwrapped(model))
    shadow = replica(net).to("meta")
    empty = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, example)
    try:
        with torch.no_grad(), fixed_seed(shadow):
            outputs(shadow, empty)
    except Exception:  # A value was read, or a tensor is made on a device that the code names.
        return net, example
    return shadow, empty


def _non_negative(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return argmin_x ||matrix x - wanted||^2 over x >= 0.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), algorithm 23.10.
    """
    x, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], dtype=bool)
    for _ in range(3 * len(x)):
        slope = np.where(free, 0.0, matrix.T @ (wanted - matrix @ x))
        if slope.max() <= ROUNDING:
            break
        free[slope.argmax()] = True
        while True:
            best = np.zeros(len(x))
            best[free] = np.linalg.lstsq(matrix[:, free], wanted)[0]
            low = free & (best <= 0)
            if not low.any():
                break
            x = x + (x[low] / (x[low] - best[low])).min() * (best - x)
            free &= x > ROUNDING
        x = best
    return x
