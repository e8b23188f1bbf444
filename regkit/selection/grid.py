"""Strengths to try: evenly spaced in the logarithm, and short to write."""

import math

from regkit.errors import InputError


def two_digits(number: float | int) -> float:
    """Round a number to two significant digits.

    Raises: InputError unless it is finite and > 0.
    """
    if not 0 < number < math.inf:
        raise InputError(f"two_digits got {number!r}; give a number > 0.")
    return float(f"{number:.1e}")


def log_grid(high: float | int, lam_min_ratio: float | int = 1e-3, num: int = 20) -> list[float]:
    """Return strengths from `high` down to `high * lam_min_ratio`, a constant factor apart.

    Each is rounded to two significant digits, so that the names of runs stay short: the spacing is
    even to a few percent.

    num: of strengths; 1 is `high` alone.
    Raises: InputError when a value is out of range, or when `num` is so large that rounding would
        give some strength twice.
    """
    if not 0 < high < math.inf or not 0 < lam_min_ratio < 1:
        raise InputError(
            f"log_grid got high={high!r} and lam_min_ratio={lam_min_ratio!r}; give high > 0, and "
            "lam_min_ratio between 0 and 1: the lowest strength as a share of the highest."
        )
    if num < 1:
        raise InputError(f"log_grid got num={num}; give the number of strengths, 1 or more.")
    grid = [two_digits(high * lam_min_ratio ** (k / max(num - 1, 1))) for k in range(num)]
    if len(set(grid)) < num:
        raise InputError(
            f"log_grid got num={num}, and between {high:.2g} and "
            f"{high * lam_min_ratio:.2g} there are only {len(set(grid))} such "
            "strengths of two significant digits. Give a smaller num or a smaller lam_min_ratio."
        )
    return grid
