"""What a penalty is: a value that joins the objective, and for weights its prox."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regkit.errors import InputError

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

    on: what it acts on; module names (globs, "layer1.*"), module types (`nn.Conv3d` or
        "Conv3d"), parameter names ("*.bias"), and any of these behind "!" to leave it out.
        Default: all weights of convolution, linear, attention and recurrent layers.
    """

    on: Sequence[Selector] | Selector = field(default=(), kw_only=True)

    # True where the prox of another penalty may follow and the pair is still exact: that prox
    # has to stay within the subdifferential of this one (Yu, NeurIPS 2013, theorem 1).
    composes: ClassVar[bool] = False
    # True for a shrinkage by the learning rate itself, outside the metric and outside F.
    decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        on = (self.on,) if isinstance(self.on, str | type) else tuple(self.on)
        if wrong := [s for s in on if not isinstance(s, str | type)]:
            raise InputError(
                f"{type(self).__name__} got on={wrong[0]!r}; give names, globs or module types."
            )
        object.__setattr__(self, "on", on)

    @abstractmethod
    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return what the penalty adds to the objective, `lam` included."""

    @abstractmethod
    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Return argmin_x  sum (x - rows)^2 / (2 step)  +  value(x).

        step: in units of the learning rate, >= 0; a number, or a tensor that broadcasts to
            `rows` (diagonal metric: learning rate / d_i). Step 0 changes nothing.
        """


@dataclass(frozen=True)
class ActivationPenalty(Penalty):
    """A penalty on frame embeddings; it joins the loss, not the step.

    of: name of the module whose output is penalised. Default: the one that the model names by
        its attribute `frame_embeddings`.
    layout: the axes of that output, a letter each: B batch, T frames, D dim (also C), H and W
        (averaged over). Default: "BTD" for 3 axes, "BDTHW" for 5; recurrent layers are known.
    """

    of: str | None = field(default=None, kw_only=True)
    layout: str | None = field(default=None, kw_only=True)

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
        """Return what the penalty adds to the objective, `lam` included."""
