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
# What a target may be of, "target_" + this; the unit in which it is said, and its size.
UNITS = {"density": ("of the weights", 1.0), "flops": ("FLOPs", 1.0)}
UNITS |= {"parameters": ("parameters", 1.0), "latency": ("ms", 1e-3)}


@dataclass(frozen=True)
class Target:
    """What a training is to end with: `kind`, a key of UNITS, and how much of it.

    value: a share of the whole up to 1; above, FLOPs, parameters or milliseconds.
    """

    kind: str
    value: float

    @property
    def name(self) -> str:
        """Name of the option."""
        return f"target_{self.kind}"

    @property
    def is_budget(self) -> bool:
        """Say whether it counts what is left when channels are cut out, and not single weights."""
        return self.kind != "density"

    def share(self, whole: float) -> float:
        """Return the share of a whole cost (FLOPs, parameters or seconds) that it is."""
        return self.value if self.value <= 1 else self.value * UNITS[self.kind][1] / whole


@dataclass(frozen=True)
class Schedule:
    """Say how strong the weight penalties are in the course of training, and what it ends with.

    Everything is a function of progress, the share of training that is done (0 to 1).

    ramp: "linear", "cosine" or "cubic": every `lam` rises from 0 over the first `ramp_until` of
        training.
    ramp_until: end of a ramp, or of the cubic fall of what there is towards a target.
    target_density: share of the weights that are trained and penalised that is not zero in the
        end. The strength of penalties that make zeros is found: their `lam` is only where the
        search starts; weights that others alone choose are not counted.
    target_flops, target_parameters, target_latency: instead, what the net costs once its dead
        channels are cut out (`regkit.shrink`), met to within a channel: a share of the whole net up
        to 1, above it FLOPs of one run, parameters, or milliseconds of one run on this device
        (from a table of widths that is measured before training, and kept in its checkpoints). For
        groups that can be removed. Layers of low rank count as whole: what `shrink` saves by
        writing them as two comes on top.
    layerwise: every layer (or set of channels) comes down to the target by a strength of its own;
        all keep the same share of their channels.
    by_cost: of a budget without `layerwise`: `lam` of each set of channels times what one of its
        weights costs, so that a channel goes by what it gives for what it costs. False: one `lam`
        for all, which strips the layers whose weights are small of nearly all their channels.
    multiple_of: of a budget: widths count as the next multiple; give it to `regkit.shrink` too.
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
    target_flops: float | None = None
    target_parameters: float | None = None
    target_latency: float | None = None
    layerwise: bool = False
    by_cost: bool = True
    multiple_of: int = 1
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
        given = [name for kind in UNITS if getattr(self, name := f"target_{kind}") is not None]
        if len(given) > 1:
            raise InputError(
                f"Schedule got {' and '.join(given)}; one strength meets one target. Give one."
            )
        target = self.target
        if target is not None:
            most = math.inf if target.is_budget else 1
            if not (0 < target.value < most and target.value != 1):
                allowed = "between 0 and 1" + ", or above 1 in its unit" * target.is_budget
                raise InputError(f"Schedule got {target.name}={target.value}; it lies {allowed}.")
            if self.ramp is not None:
                raise InputError(
                    f"Schedule got ramp and {target.name}; the target finds the strength by "
                    "itself. Leave ramp out."
                )
        self._check_allocation(target)

    def _check_allocation(self, target: Target | None) -> None:
        if self.layerwise and target is None:
            raise InputError(
                f"Schedule got layerwise={self.layerwise} without a target, such as "
                "target_density, which it shares out among the layers. Give both, or `lam_scale` "
                "to the penalty."
            )
        if not isinstance(self.multiple_of, int) or self.multiple_of < 1:
            raise InputError(f"Schedule got multiple_of={self.multiple_of!r}; give 1 or more.")
        if self.multiple_of > 1 and (target is None or not target.is_budget):
            raise InputError(
                f"Schedule got multiple_of={self.multiple_of} without a budget. Give "
                "target_flops, target_parameters or target_latency too."
            )

    def _check_order(self) -> None:
        rises = self.ramp is not None or self.target is not None
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
    def target(self) -> Target | None:
        """What training is to end with; None where nothing is asked for."""
        given = {kind: getattr(self, f"target_{kind}") for kind in UNITS}
        found = [Target(kind, value) for kind, value in given.items() if value is not None]
        return found[0] if found else None

    @property
    def depends_on_progress(self) -> bool:
        """Say whether anything changes in the course of training."""
        return any(
            option is not None for option in (self.ramp, self.target, self.settle, self.debias)
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

    def wanted(self, progress: float, share: float) -> float:
        """Return the share that training should have come down to at a progress from 0 to 1.

        share: where it ends.
        """
        return 1 - (1 - share) * self._risen(progress, "cubic")

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
