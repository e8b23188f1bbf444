"""What a penalty is: a value that joins the objective, and for weights its prox."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.ops.formula import SHRINK, Coefficients, Formula
from regkit.structure.groups import KINDS

Step = float | Float[Tensor, "..."]
Selector = str | type[nn.Module]


def check_number(owner: object, name: str, low: float, high: float = math.inf) -> float:
    """Return field `name` of `owner` as a float within [low, high]; InputError otherwise."""
    value = getattr(owner, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (low <= number <= high and math.isfinite(number)):
        allowed = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise InputError(
            f"{type(owner).__name__} got {name}={value!r}; {name} is a number {allowed}."
        )
    return number


@dataclass(frozen=True)
class Penalty(ABC):
    """A term `lam * psi` of the objective F.

    lam: strength, >= 0.
    Raises: InputError when a field is out of range.
    """

    lam: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", check_number(self, "lam", 0.0))


@dataclass(frozen=True)
class WeightPenalty(Penalty):
    """A penalty on weights, applied by its prox right after the optimizer's own update.

    params: what it acts on; module names (globs, "layer1.*"), module types (`nn.Conv3d` or
        "Conv3d"), parameter names ("*.bias"), and any of these behind "!" to leave it out.
        Default: all weights of convolution, linear, attention and recurrent layers.
    lam_scale: what `lam` is multiplied by where a selector (as in `params`) matches, the first that
        does: {"layer4": 2.0, "head": 0.1}. Factor 0 leaves a layer alone.
    """

    params: Sequence[Selector] | Selector = field(default=(), kw_only=True)
    lam_scale: Mapping[Selector, float] | Sequence[tuple[Selector, float]] = field(
        default=(), kw_only=True
    )

    # How the weights are seen (`regkit.structure.groups.LAYOUTS`). "entries": `rows` has any shape
    # and every entry is by itself; else `rows` is (groups, size), and every row is by itself.
    layout: ClassVar[str] = "entries"
    # True where `prox` needs the rows of one parameter together, as a matrix, and the same step
    # for all of them: the move is then taken in a scalar metric.
    joint: ClassVar[bool] = False
    # True where `prox` needs all rows of one group set, to rank them among each other; each entry
    # may still have a step of its own.
    ranks: ClassVar[bool] = False
    # True where the prox of another penalty may follow and the pair is still exact: that prox
    # has to stay within the subdifferential of this one (Yu, NeurIPS 2013, theorem 1).
    composes: ClassVar[bool] = False
    # True where the prox moves entries towards zero and never across: then it may follow one that
    # composes.
    shrinks: ClassVar[bool] = True
    # True where a stronger penalty means more exact zeros: a density can then be aimed at.
    sparsifies: ClassVar[bool] = True
    # True for a shrinkage by the learning rate itself, outside the metric and outside F.
    decoupled: ClassVar[bool] = False
    # True for a set that the weights have to stay in: any lam > 0 means it, and debiasing keeps it.
    constraint: ClassVar[bool] = False
    convex: ClassVar[bool] = True
    # The prox of one entry as kernels are made of it (`regkit.ops.formula`), or SHRINK for groups;
    # None: there is no kernel, and torch takes the prox on every device.
    kernel: ClassVar[Formula | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        params = (self.params,) if isinstance(self.params, str | type) else tuple(self.params)
        if wrong := [s for s in params if not isinstance(s, str | type)]:
            raise InputError(f"{who} got params={wrong[0]!r}; give names, globs or module types.")
        object.__setattr__(self, "params", params)
        object.__setattr__(self, "lam_scale", _pairs(who, self.lam_scale))

    def scaled(self, strength: float) -> "WeightPenalty":
        """Return the penalty with `strength` times its `lam`.

        Constraints and decoupled ones are returned as they are.
        """
        if strength == 1.0 or self.constraint or self.decoupled:
            return self
        return replace(self, lam=self.lam * strength)

    def coefficients(self, size: int) -> Coefficients:
        """Return the coefficients of the kernel's formula, by default the fields of their names.

        size: of a group; 1 for entries.
        """
        if self.kernel is None:
            raise NotImplementedError(f"{type(self).__name__} has no kernel")
        return tuple(float(getattr(self, name)) for name in self.kernel.coefficients)

    def slope_at_zero(self, size: int) -> tuple[float, float] | None:
        """Return (l1, norm): zero stays while ||soft(gradient, l1)|| <= norm, whatever the step.

        None where it depends on the step.

        size: of a group; 1 for entries.
        """
        return self.coefficients(size)[:2] if self.kernel is SHRINK else None  # type: ignore[return-value]: it has three

    @abstractmethod
    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return what the penalty on these rows of weights adds to the objective, with `lam`."""

    @abstractmethod
    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Return argmin_x  sum (x - rows)^2 / (2 step)  +  value(x).

        step: in units of the learning rate, >= 0; a number, or a tensor that broadcasts to
            `rows` (diagonal metric: learning rate / d_i). Step 0 changes nothing.
        """


@dataclass(frozen=True)
class GroupPenalty(WeightPenalty):
    """A penalty under which weights live or die in groups.

    groups: what a group is; one of `regkit.structure.groups.KINDS`:
        filter (output channel, row of a linear layer), in_channel (input channel, column),
        kernel (one output and one input channel), time_tap (one time step of all 3-D kernels of a
        layer), hidden_unit (of a recurrent layer, all gates together), head (of attention),
        channel (all that is removed with a channel: coupled filters, biases and norms),
        channel_inputs (the same channels, seen from the layers that read them).
    Raises: InputError when `groups` is none of these.
    """

    groups: str = field(default="filter", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups not in KINDS:
            raise InputError(
                f"{type(self).__name__} got groups={self.groups!r}; "
                f"groups is one of {', '.join(KINDS)}."
            )

    @property
    def layout(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return `groups`: how the weights are seen."""
        return self.groups

    @abstractmethod
    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return what the penalty on these rows, each a group, adds to F, with `lam`."""

    @abstractmethod
    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Return argmin_x  sum (x - rows)^2 / (2 step)  +  value(x), as `WeightPenalty.prox`."""


@dataclass(frozen=True)
class ActivationPenalty(Penalty):
    """A penalty on frame embeddings; it joins the loss, not the step.

    module: name of the module whose output is penalised. Default: the one that the model names by
        its attribute `frame_embeddings`.
    layout: the axes of that output, a letter each: B batch, T frames, D dim (also C), H and W
        (averaged over). Default: "BTD" for 3 axes, "BDTHW" for 5; recurrent layers are known.
    """

    module: str | None = field(default=None, kw_only=True)
    layout: str | None = field(default=None, kw_only=True)

    # False where every activation counts by itself, before any mean over height and width: `value`
    # then gets the output of any axes as (1, 1, all).
    pooled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout is None:
            return
        layout = self.layout.upper().replace("C", "D")
        if len(set(layout)) != len(layout) or not {"B", "T", "D"} <= set(layout) <= set("BTDHW"):
            raise InputError(
                f"{type(self).__name__} got layout={self.layout!r}; give each of B, T and D once, "
                'and H and W where there are any, for instance "BDT".'
            )
        object.__setattr__(self, "layout", layout)

    @property
    @abstractmethod
    def least_frames(self) -> int:
        """Number of time steps that the penalty needs."""

    @abstractmethod
    def value(self, frames: Float[Tensor, "batch frames dim"]) -> Float[Tensor, ""]:
        """Return what the penalty on these embeddings of frames adds to the loss, with `lam`."""


def _pairs(who: str, scales: object) -> tuple[tuple[Selector, float], ...]:
    pairs = tuple(scales.items() if isinstance(scales, Mapping) else scales)  # type: ignore[arg-type]
    for selector, factor in pairs:
        number = isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0
        if not isinstance(selector, str | type) or not number:
            raise InputError(
                f"{who} got lam_scale with {selector!r}: {factor!r}; give names, globs or module "
                "types, each with a number >= 0."
            )
    return tuple((selector, float(factor)) for selector, factor in pairs)
