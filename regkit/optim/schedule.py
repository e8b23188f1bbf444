"""What a user asks of the strength in the course of training: pure functions of progress."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from regkit.errors import InputError

# From 0 to 1 over the ramp. Cubic: Zhu and Gupta, ICLR 2018 workshop, equation 1.
RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "cubic": lambda x: 1 - (1 - x) ** 3,
}
# Share of training, before it ends or the penalty is taken off, in which a target is met exactly.
CLOSING = 0.1


@dataclass(frozen=True)
class Schedule:
    """Say how strong the weight penalties are in the course of training, and what it ends with.

    Everything is a function of progress, the share of training that is done (0 to 1).

    ramp: "linear", "cosine" or "cubic": every `lam` rises from 0 over the first `ramp_until` of
        training.
    ramp_until: end of a ramp, or of the cubic fall of the density towards `target_density`.
    target_density: share of the weights that are trained and penalised that is not zero in the
        end. The strength of penalties that make zeros is found: their `lam` is only where the
        search starts; weights that others alone choose are not counted.
    layerwise: every layer (or set of channels) comes down to the target by a strength of its own.
    settle: share of training from which zeros stay zero, while the penalty stays on.
    debias: share of training from which the penalty is off and zeros stay zero, so that what is
        left is trained without its pull (Meinshausen, Relaxed Lasso, 2007).
    num_steps: number of steps of the whole training, of the optimizer that takes most; for plain
        PyTorch. Without it, `Regularizer.set_progress` says how far training is; under Lightning
        the callback does.
    holds_zeros: a zero wakes only on the evidence of averaged gradients (`regkit.optim.support`),
        so that what is zero in the end is no draw from the last mini-batches. False: as soon as
        the optimizer's own step moves it out of the penalty's reach.
    Raises: InputError when an option is out of range, or two exclude each other.
    """

    ramp: str | None = None
    ramp_until: float = 0.5
    target_density: float | None = None
    layerwise: bool = False
    settle: float | None = None
    debias: float | None = None
    num_steps: int | None = None
    holds_zeros: bool = True

    def __post_init__(self) -> None:
        if self.ramp is not None and self.ramp not in RAMPS:
            raise InputError(
                f"Schedule got ramp={self.ramp!r}; it is one of {', '.join(RAMPS)}, or None."
            )
        for name in ("ramp_until", "settle", "debias"):
            _check_share(name, getattr(self, name), optional=name != "ramp_until")
        if self.num_steps is not None and self.num_steps < 1:
            raise InputError(f"Schedule got num_steps={self.num_steps}; it is 1 or more.")
        self._check_target()
        self._check_order()

    def _check_target(self) -> None:
        target = self.target_density
        if target is not None and not 0 < target < 1:
            raise InputError(f"Schedule got target_density={target}; it lies between 0 and 1.")
        if self.ramp is not None and target is not None:
            raise InputError(
                "Schedule got ramp and target_density; the target finds the strength by itself. "
                "Leave ramp out."
            )
        if self.layerwise and target is None:
            raise InputError(
                f"Schedule got layerwise={self.layerwise} without target_density, which it shares "
                "out among the layers. Give both, or `lam_scale` to the penalty."
            )

    def _check_order(self) -> None:
        rises = self.ramp is not None or self.target_density is not None
        for name in ("settle", "debias"):
            begin = getattr(self, name)
            if begin is not None and rises and begin < self.ramp_until:
                raise InputError(
                    f"Schedule got {name}={begin}, which lies before ramp_until={self.ramp_until}: "
                    "the penalty is not at full strength by then. Make ramp_until smaller."
                )
        if self.settle is not None and self.debias is not None and self.debias < self.settle:
            raise InputError(
                f"Schedule got settle={self.settle} after debias={self.debias}, from which on "
                "zeros stay anyhow. Leave settle out, or make it smaller."
            )

    @property
    def depends_on_progress(self) -> bool:
        """Say whether anything changes in the course of training."""
        return any(
            option is not None
            for option in (self.ramp, self.target_density, self.settle, self.debias)
        )

    def strength(self, progress: float) -> float:
        """Return what every `lam` is multiplied by, a target aside.

        progress: before the step that it holds for.
        """
        return 1.0 if self.ramp is None else self._risen(progress, self.ramp)

    def is_debiasing(self, progress: float) -> bool:
        """Say whether the penalty is off in the step that training reaches this progress by."""
        return self.debias is not None and progress > self.debias

    def keeps_zeros(self, progress: float) -> bool:
        """Say whether zeros stay zero in the step that training reaches this progress by."""
        settled = self.settle is not None and progress > self.settle
        return settled or self.is_debiasing(progress)

    def wanted_density(self, progress: float) -> float:
        """Return the density that training should have come down to at a progress from 0 to 1."""
        assert self.target_density is not None
        return 1 - (1 - self.target_density) * self._risen(progress, "cubic")

    @property
    def closing(self) -> tuple[float, float]:
        """Return the span of progress in which the target is met exactly."""
        end = 1.0 if self.debias is None else self.debias
        return end - CLOSING, end

    def unfinished(self, progress: float) -> list[str]:
        """Say which phases a training that ends at this progress has not been through."""
        left = []
        if self.ramp is not None and progress < self.ramp_until:
            left.append(f"ramp_until={self.ramp_until}")
        left += [
            f"{name}={begin}"
            for name in ("settle", "debias")
            if (begin := getattr(self, name)) is not None and progress <= begin < 1
        ]
        return left

    def _risen(self, progress: float, ramp: str) -> float:
        return RAMPS[ramp](min(progress / self.ramp_until, 1.0)) if self.ramp_until else 1.0


def _check_share(name: str, value: float | None, optional: bool) -> None:
    if not (value is None and optional) and not (value is not None and 0 <= value <= 1):
        raise InputError(f"Schedule got {name}={value}; it is a share of training, 0 to 1.")


class Progress:
    """How far training is, from 0 to 1. It never goes back: a second fit goes on where it was.

    value: None until somebody has said it.
    """

    def __init__(self, value: float | None = None) -> None:
        self.value = value

    def reach(self, share: float) -> None:
        """Move on to this share of training, if it is not behind."""
        self.value = max(self.value or 0.0, min(max(float(share), 0.0), 1.0))
