"""Grids of strengths."""

import math

import numpy as np
import pytest

from regkit import InputError
from regkit.selection.grid import log_grid, two_digits


@pytest.mark.parametrize(
    ("high", "ratio", "num"), [(0.0123, 1e-3, 10), (3, 1e-2, 20), (7e5, 0.5, 5)]
)
def test_a_grid_falls_evenly_and_is_short_to_write(high: float, ratio: float, num: int):
    grid = log_grid(high, ratio, num)
    exact = np.geomspace(high, high * ratio, num)
    assert grid == sorted(set(grid), reverse=True)
    assert len(grid) == num
    np.testing.assert_allclose(grid, exact, rtol=0.05)
    for lam in grid:
        digits = lam / 10 ** math.floor(math.log10(lam) + 1e-9) * 10
        assert digits == pytest.approx(round(digits), abs=1e-6)


def test_one_strength_is_the_highest():
    assert log_grid(0.0567, num=1) == [0.057]
    assert two_digits(123456) == 120000.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"high": 0}, "high > 0"),
        ({"high": float("nan")}, "high > 0"),
        ({"high": 1, "lam_min_ratio": 1}, "lam_min_ratio"),
        ({"high": 1, "num": 0}, "1 or more"),
        ({"high": 1, "lam_min_ratio": 0.5, "num": 60}, "smaller num"),
    ],
)
def test_what_is_no_grid_is_refused(options: dict, said: str):
    with pytest.raises(InputError, match=said):
        log_grid(**options)
    with pytest.raises(InputError):
        two_digits(0)
