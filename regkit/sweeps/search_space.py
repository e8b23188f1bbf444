"""What a search varies, in Hydra's words: lam=interval(1e-5,1e-2) penalty=choice(l1,scad)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from regkit.errors import InputError

_DECADES = 2  # that the ends of an interval of positive numbers lie apart to be searched by its log
_DIGITS = 4  # that are told of a drawn number: names and commands stay short


@dataclass(frozen=True)
class Number:
    """A number between two ends, both among it. Whole, by steps, or by its logarithm."""

    low: float | int
    high: float | int
    step: float | int | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Say whether it is an integer."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def word(self, value: float | int) -> str:
        """Write a drawn value, as precisely as the interval is wide."""
        if self.whole or self.step is not None:
            return str(value)
        largest = max(abs(self.low), abs(self.high))
        narrow = math.ceil(math.log10(largest / (self.high - self.low)))
        digits = _DIGITS if self.log else _DIGITS + max(0, narrow)
        return repr(min(max(float(f"{value:.{digits}g}"), self.low), self.high))


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    words: tuple[str, ...]

    def word(self, value: str) -> str:
        """Write a drawn value."""
        return value


Space = Mapping[str, Number | Choice]


def split(overrides: Iterable[Override]) -> tuple[dict[str, Number | Choice], list[str]]:
    """Divide overrides into what is searched, by key, and words that all jobs share.

    Raises: InputError when nothing is searched, or an interval is empty.
    """
    space: dict[str, Number | Choice] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        space.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = _dimension(override)
        elif override.is_delete():
            fixed[key] = str(override.input_line)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not space:
        raise InputError(
            "A search was asked for, and nothing to search; give lam='interval(1e-5,1e-2)' or "
            "penalty=l1,group_lasso."
        )
    return space, list(fixed.values())


def _dimension(override: Override) -> Number | Choice:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return _interval(str(override.input_line), sweep)
    if isinstance(sweep, RangeSweep) and len(values := sorted(sweep.range())) > 1:
        return Number(values[0], values[-1], step=abs(sweep.step))
    return Choice(tuple(override.sweep_string_iterator()))


def _interval(line: str, sweep: IntervalSweep) -> Number:
    low: Any = sweep.start
    high: Any = sweep.end
    if not low < high:
        raise InputError(f"{line} is empty; give interval(low,high) with low < high.")
    if not sweep.tags <= {"log", "linear"}:
        raise InputError(f"{line} has the tags {sorted(sweep.tags)}; give log, linear or none.")
    if "log" in sweep.tags and low <= 0:
        raise InputError(f"{line} has no logarithm at its lower end; give a number > 0.")
    far = low > 0 and high >= low * 10**_DECADES and "linear" not in sweep.tags
    return Number(low, high, log="log" in sweep.tags or far)
