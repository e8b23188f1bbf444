"""How the strength of all penalties changes in training: ramps, a density to reach, debiasing."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from regkit.errors import InputError

# From 0 to 1 over the ramp. Cubic: Zhu and Gupta, ICLR 2018 workshop, equation 1.
RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "cubic": lambda x: 1 - (1 - x) ** 3,
}
# Observations of the density over the whole training; each waits for the device once.
NUM_OBSERVATIONS = 400
# Gains of the feedback on log(lam): per unit of density and training, and per unit of density.
INTEGRAL, PROPORTIONAL = 60.0, 3.0
# How near the target the density of every single step is kept from falling below it.
NEAR = 0.1
# The name of the common strength, where layers have none of their own.
ALL = ""
# Lowest and highest density, by the name of what has a strength.
Bounds = Mapping[str, tuple[float, float]]
# Share of training, before it ends or the support is frozen, in which the target is met exactly.
CLOSING = 0.1


@runtime_checkable
class Layers(Protocol):
    """Layers that get a strength each, beside the common one."""

    def shares(self) -> Mapping[str, float]:
        """Return the share of non-zero weights of each layer."""
        ...

    def weigh(self, factors: Mapping[str, float]) -> None:
        """Multiply `lam` by a factor in each layer from now on."""
        ...


class Strength:
    """Say what every `lam` is multiplied by at each real step.

    ramp: "linear", "cosine" or "cubic": from 0 to 1 over the first `ramp_until` of training.
    target_density: share of the penalised weights that shall be non-zero in the end. The strength
        is then found by feedback: log(lam) follows the excess of the density over a wanted course
        (a cubic fall from 1, complete at `ramp_until`) by a proportional and an integral term. In
        the last tenth of training, or before the support is frozen, it is solved for; and no step
        may end below the target. Each such step waits for the device. With channels the strength
        falls towards nothing once the target is met: one that is nearly zero hardly gets a gradient
        and would go at any strength.
    layerwise: every layer comes down to the target, each by a factor of its own beside the common
        one, found by the same feedback on what it has more than the whole, and solved for likewise
        in the end. Else those with small gradients are worn through while others stay whole.
    freeze_support: share of training after which the penalties are off and zeros stay zero, so
        that what is left is trained without bias (debiasing).
    num_steps: number of real steps of the whole training; set before the first one.
    density: measures the density; asked `NUM_OBSERVATIONS` times.
    layers: measured and weighed, where `layerwise` is asked for.
    Raises: InputError when an option is out of range, or two exclude each other.
    """

    def __init__(
        self,
        *,
        ramp: str | None = None,
        ramp_until: float = 0.5,
        target_density: float | None = None,
        freeze_support: float | None = None,
        layerwise: bool = False,
        num_steps: int | None,
        density: Callable[[], float],
        layers: Layers | None = None,
    ) -> None:
        check_strength(ramp, ramp_until, target_density, freeze_support, layerwise)
        self.ramp = ramp
        self.ramp_until = ramp_until
        self.target_density = target_density
        self.freeze_support = freeze_support
        self.num_steps = num_steps or 0
        self._density = density
        self.layers = layers if layerwise else None
        self._common = _Feedback()
        self._each: dict[str, _Feedback] = {}
        self._observed = 0
        self._last: Mapping[str, float] = {ALL: 1.0} if self.layers is None else {}
        self._entered: Mapping[str, float] | None = None

    def __call__(self, step: int) -> float | None:
        """Return the factor at a real step, counted from 1; None: penalties off, zeros stay."""
        progress = (step - 1) / self.num_steps
        if self.freeze_support is not None and progress >= self.freeze_support:
            return None
        if self.target_density is not None:
            if step > self._closing[0]:
                if self._entered is None:
                    self._entered = self._shares(self._density())
            elif step >= self._observed + max(self.num_steps // NUM_OBSERVATIONS, 1):
                self._observe(step, progress)
            return self._common.factor
        return self._course(progress)

    def bounds(self, step: int) -> Bounds | None:
        """Return the densities between which this very step shall end; None where any will do.

        Below the target there is no way back for a channel: with all of it at zero, its gradient
        is zero too.
        """
        begin, end = self._closing
        if self.target_density is None or step > end:
            return None
        target = self.target_density
        if self._entered is None:
            near = [name for name, share in self._last.items() if share <= target + NEAR]
            return dict.fromkeys(near, (target, 1.0)) or None
        left = max(2 * (end - step) / (end - begin) - 1, 0.0)
        wanted = {name: target + left * (e - target) for name, e in self._entered.items()}
        return {name: (share, share) for name, share in wanted.items()}

    def found(self, factors: Mapping[str, float]) -> None:
        """Go on from the factors that a step was solved with, named as in `factors`."""
        for name, factor in factors.items():
            feedback = self._common if name == ALL else self._each[name]
            feedback.log = math.log(factor)

    def factors(self) -> dict[str, float]:
        """Return what `lam` is multiplied by in each layer, beside the common factor.

        Without layers: the common factor.
        """
        if self.layers is None:
            return {ALL: self._common.factor}
        return {name: feedback.factor for name, feedback in self._each.items()}

    @property
    def _closing(self) -> tuple[int, int]:
        """Return the steps between which the target is met exactly."""
        end = math.ceil((self.freeze_support or 1.0) * self.num_steps)
        return end - math.ceil(CLOSING * self.num_steps), end

    def _course(self, progress: float) -> float:
        if self.ramp is None:
            return 1.0
        return RAMPS[self.ramp](min(progress / self.ramp_until, 1.0)) if self.ramp_until else 1.0

    def _observe(self, step: int, progress: float) -> None:
        assert self.target_density is not None
        fallen = RAMPS["cubic"](min(progress / self.ramp_until, 1.0)) if self.ramp_until else 1.0
        whole = self._density()
        passed = (step - self._observed) / self.num_steps
        self._observed = step
        self._common.follow(whole - (1 - (1 - self.target_density) * fallen), passed)
        self._last = self._shares(whole)
        if self.layers is not None:
            for name, share in self._last.items():
                self._each[name].follow(share - whole, passed)
            self.layers.weigh(self.factors())

    def _shares(self, whole: float) -> Mapping[str, float]:
        if self.layers is None:
            return {ALL: whole}
        shares = self.layers.shares()
        for name in shares:
            self._each.setdefault(name, _Feedback())
        return shares

    def state_dict(self) -> dict[str, Any]:
        """Return what training needs again."""
        return {
            "log_factor": self._common.log,
            "excess": self._common.excess,
            "observed": float(self._observed),
            "last": self._last,
            "entered": self._entered,
            "layers": {name: (each.log, each.excess) for name, each in self._each.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._common = _Feedback(float(state["log_factor"]), float(state["excess"]))
        self._observed = int(state["observed"])
        self._last = state["last"]
        self._entered = state["entered"]
        self._each = {name: _Feedback(*numbers) for name, numbers in state["layers"].items()}
        if self.layers is not None:
            self.layers.weigh(self.factors())


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


def check_strength(
    ramp: str | None = None,
    ramp_until: float = 0.5,
    target_density: float | None = None,
    freeze_support: float | None = None,
    layerwise: bool = False,
) -> None:
    """Refuse options that are out of range or exclude each other.

    Raises: InputError.
    """
    if ramp is not None and ramp not in RAMPS:
        raise InputError(f"ramp={ramp!r} was given; it is one of {', '.join(RAMPS)}, or None.")
    if not 0 <= ramp_until <= 1:
        raise InputError(f"ramp_until={ramp_until} was given; it is a share of training, 0 to 1.")
    if target_density is not None and not 0 < target_density < 1:
        raise InputError(f"target_density={target_density} was given; it lies between 0 and 1.")
    if freeze_support is not None and not 0 <= freeze_support <= 1:
        raise InputError(
            f"freeze_support={freeze_support} was given; it is a share of training, 0 to 1."
        )
    if ramp is not None and target_density is not None:
        raise InputError(
            "ramp and target_density were both given; the target finds the strength by itself. "
            "Leave ramp out."
        )
    if layerwise and target_density is None:
        raise InputError(
            f"layerwise={layerwise} was given without target_density, which it shares out among "
            "the layers. Give both, or factors to the penalty."
        )
    if freeze_support is not None and freeze_support < ramp_until and (ramp or target_density):
        raise InputError(
            f"freeze_support={freeze_support} lies before ramp_until={ramp_until}: the penalty "
            "would be off before it is at full strength. Make ramp_until smaller."
        )


def make_strength(
    options: Mapping[str, Any],
    num_steps: int | None,
    density: Callable[[], float],
    layers: Layers,
    sparsifies: bool,
) -> Strength | None:
    """Make what the options ask for, or None where they leave the strength as it is.

    density, layers: see `Strength`.
    sparsifies: whether a stronger penalty means more zeros.
    Raises: InputError when an option is out of range or cannot be met.
    """
    check_strength(**options)
    if all(options.get(name) is None for name in ("ramp", "target_density", "freeze_support")):
        return None
    if options.get("target_density") is not None and not sparsifies:
        raise InputError(
            f"target_density={options['target_density']} was given, and no penalty here makes "
            "more zeros when it is stronger. Add one that does, such as L1 or GroupLasso, with "
            "lam > 0 to start from."
        )
    return Strength(num_steps=num_steps, density=density, layers=layers, **options)
