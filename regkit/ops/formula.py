"""The prox of one entry as a small Python function, from which every kernel is made.

A penalty's file writes its formula in plain Python; run as it stands, on tensors, it is the
reference, and `regkit.ops.translate` makes C and Triton of its source.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.broadcast import as_tensor
from regkit.ops.secular import fold_rows, shrink_rows
from regkit.ops.threshold import soft_threshold

Number = int | float | Tensor
Coefficients = tuple[float, ...]
NUM_COEFFICIENTS = 5

# A slope that stands for a jump: two floats differ by so much that, times this, the difference
# exceeds both.
STEEP = 1e30
# The smallest normal number and the largest number of float32.
TINY = 2.0**-126
LARGEST = (2 - 2.0**-23) * 2.0**127


class Formula:
    """A prox as kernels know it: a function of an entry, its step and a few coefficients.

    key: what names the formula where objects do not pass (the arguments of torch's ops).
    coefficients: names of the parameters behind the first two.
    decoupled: the second parameter is `lr`, the learning rate itself, whatever the metric.
    grouped: the function acts on rows (groups, size); the kernels of it are written by hand.
    name: of the module's global that holds the formula, where it is not that of the function.
    """

    def __init__(
        self, function: Callable[..., Any], grouped: bool = False, name: str | None = None
    ) -> None:
        self.function = function
        self.source = inspect.unwrap(function)
        self.grouped = grouped
        self.__name__ = name or self.source.__name__
        self.__qualname__ = name or self.source.__qualname__
        self.__module__ = self.source.__module__
        _, second, *rest = _parameters(self.source, grouped)
        self.decoupled = second == "lr"
        self.coefficients = tuple(rest)
        key = f"{self.__module__}:{self.__qualname__}"
        # A second one of that name (a cell of a notebook run again) leaves the first as it is.
        self.key = key if key not in FORMULAS else f"{key}:{len(FORMULAS)}"
        FORMULAS[self.key] = self

    def __call__(self, v: Number, step: Number, *coefficients: Number) -> Any:
        """Run the function as it stands."""
        return self.function(v, step, *coefficients)

    def prox(self, v: Tensor, step: Number, lr: float, coefficients: Coefficients) -> Tensor:
        """Apply the formula as kernels do: without strength every entry stays, bit for bit.

        coefficients: as many as the formula has, or more.
        """
        given = coefficients[: len(self.coefficients)]
        if self.grouped:
            return self.function(v, step, *given)
        if given[0] == 0:
            return v
        return self.function(v, lr if self.decoupled else as_tensor(step, v), *given).to(v.dtype)

    def __repr__(self) -> str:
        return f"Formula({self.key})"

    def __reduce__(self) -> str:
        # As functions are: by name. A deep copy is the same formula.
        return self.__qualname__


# Every formula there is, by its key.
FORMULAS: dict[str, Formula] = {}


def formula(function: Callable[..., Any]) -> Formula:
    """Make a formula of a function: (v, step, lam, ...) -> prox of v, all of them numbers.

    The first parameter is the entry, the second its step in the optimizer's metric (named `step`)
    or the learning rate (named `lr`), the third the strength; the others are coefficients, by
    default the penalty's attributes of these names. Where the strength is 0 kernels leave every
    entry as it is.

    The body is assignments and one return, of + - * /, comparisons, numbers, float constants of
    the module, and the functions of `VOCABULARY`. Step 0 has to leave v as it is, and NaN has to
    stay NaN, as it does through all of these functions.
    Raises: InputError for other parameters; for a body that cannot be translated, when a kernel
    is made of it.
    """
    return Formula(function)


def _parameters(function: Callable[..., Any], grouped: bool) -> list[str]:
    """Return the names of the parameters; refuse what no formula has."""
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = list(inspect.signature(function).parameters.values())
    names = [p.name for p in parameters]
    right = (
        all(p.kind is plain and p.default is inspect.Parameter.empty for p in parameters)
        and 3 <= len(names) <= 2 + NUM_COEFFICIENTS
        and names[0] == "v"
        and names[1] in ("step", "lr")
    )
    if not right:
        raise InputError(
            f"formula {function.__qualname__} got the parameters ({', '.join(names)}); they are "
            "(v, step, lam, ...), or (v, lr, lam, ...) for a step that is the learning rate, with "
            f"up to {NUM_COEFFICIENTS - 1} coefficients behind lam and no defaults."
        )
    return names


def _on_tensors(function: Callable[..., Tensor], *values: Any) -> Any:
    """Apply a torch function to numbers and tensors; a number of numbers alone."""
    tensors = [x for x in values if isinstance(x, Tensor)]
    like = next((x for x in tensors if x.is_floating_point()), None)
    kind = {
        "dtype": torch.float64 if like is None else like.dtype,
        "device": tensors[0].device if tensors else None,
    }
    made = [
        x if isinstance(x, Tensor) else torch.tensor(x, **kind if not isinstance(x, bool) else {})
        for x in values
    ]
    found = function(*made)
    return found if tensors else float(found)


def minimum(a: Number, b: Number) -> Any:
    """Return the smaller one; NaN where one is."""
    return _on_tensors(torch.minimum, a, b)


def maximum(a: Number, b: Number) -> Any:
    """Return the larger one; NaN where one is."""
    return _on_tensors(torch.maximum, a, b)


def sqrt(x: Number) -> Any:
    """Return the square root."""
    return _on_tensors(torch.sqrt, x)


def rsqrt(x: Number) -> Any:
    """Return 1 / sqrt(x)."""
    return _on_tensors(torch.rsqrt, x)


def where(condition: bool | Tensor, a: Number, b: Number) -> Any:
    """Return a where the condition (a comparison) holds, else b."""
    return _on_tensors(torch.where, condition, a, b)


def soft(v: Number, threshold: Number) -> Any:
    """Move v towards zero by `threshold`, not beyond."""
    return _on_tensors(lambda x, t: x - torch.minimum(torch.maximum(x, -t), t), v, threshold)


def within(v: Number, bound: Number) -> Any:
    """Clip v to a size of `bound`, to 0 where that is negative."""

    def clipped(x: Tensor, size: Tensor) -> Tensor:
        size = size.clamp_min(0)
        return torch.maximum(torch.minimum(x, size), -size)

    return _on_tensors(clipped, v, bound)


def log1p_share(s: Number) -> Any:
    """Return log(1 + s) / s for s >= 0, which is 1 at 0."""

    def share(x: Tensor) -> Tensor:
        x = x.clamp(torch.finfo(x.dtype).tiny, torch.finfo(x.dtype).max)
        return torch.log1p(x) / x

    return _on_tensors(share, s)


# What a formula may call. C (native/arithmetic.h) and Triton (gpu/arithmetic.py) have the same.
VOCABULARY: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "log1p_share": log1p_share,
    "maximum": maximum,
    "minimum": minimum,
    "rsqrt": rsqrt,
    "soft": soft,
    "sqrt": sqrt,
    "where": where,
    "within": within,
}


def _shrink(v: Tensor, step: Number, l1: float, norm: float, ridge: float) -> Tensor:
    """Return the prox of l1 ||w||_1 + norm ||w|| + ridge/2 ||w||^2 for every row w."""
    thinned = soft_threshold(v, step * l1) if l1 > 0 else v
    if ridge > 0:
        divisor = 1 + step * ridge
        return shrink_rows(thinned / divisor, step / divisor, norm)
    return shrink_rows(thinned, step, norm)


SHRINK = Formula(_shrink, grouped=True, name="SHRINK")


def _keep(v: Tensor, step: Number, price: float) -> Tensor:
    """Return the prox of a price for every row that is not zero."""
    # In roots and as a ratio, so that neither squares nor steps of 0 overflow to NaN.
    threshold = (as_tensor(step, v) * (2 * price)).sqrt()
    info = torch.finfo(v.dtype)
    ratio = v / threshold.clamp_min(info.tiny * info.eps)
    cheap = torch.linalg.vector_norm(ratio, dim=1, keepdim=True) < 1
    return torch.where(cheap & (threshold > 0), 0.0, v)


KEEP = Formula(_keep, grouped=True, name="KEEP")


def _fold(v: Tensor, step: Number, norm: float, gamma: float) -> Tensor:
    """Return the prox of MCP of the length of every row."""
    return fold_rows(v, step, norm, gamma) if norm > 0 else v


FOLD = Formula(_fold, grouped=True, name="FOLD")
