"""The one-standard-error rule, against its definition on random tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regkit import InputError
from regkit.selection.choose import choose

LAMS = [1e-1, 3e-2, 1e-2, 3e-3, 1e-3]
TABLES = arrays(float, st.tuples(st.integers(2, 6), st.just(5)), elements=st.floats(0, 3, width=16))


def brute_force(table: np.ndarray, simplest_first: list[int]) -> tuple[int, int]:
    """Return (chosen, best): walk from the simplest, take the first that is good enough."""
    means = [math.fsum(column) / len(column) for column in table.T]
    best = next(k for k in simplest_first if means[k] == min(means))
    column = table[:, best]
    variance = math.fsum((e - means[best]) ** 2 for e in column) / (len(column) - 1)
    limit = means[best] + math.sqrt(variance / len(column))
    return next(k for k in simplest_first if means[k] <= limit * (1 + 1e-12)), best


@given(TABLES, st.permutations(range(5)))
def test_the_strongest_within_one_standard_error(table: np.ndarray, order: list[int]):
    lams = [LAMS[k] for k in order]
    choice = choose(table, lams)
    chosen, best = brute_force(table, sorted(range(5), key=lambda k: -lams[k]))
    means = table.mean(0)
    if np.abs(means - choice.limit).min() > 1e-9 and len({*np.round(means, 9)}) == 5:
        assert (choice.chosen, choice.best) == (chosen, best)
    assert means[choice.chosen] <= choice.limit + 1e-12
    assert choose(table, lams, rule="min").chosen == choice.best
    np.testing.assert_allclose(choice.means, means)  # pyright: ignore[reportArgumentType]


def test_a_worked_example():
    #                 lam    1     0.1   0.01
    table = np.array([[0.9, 0.50, 0.40], [0.9, 0.44, 0.50], [0.9, 0.49, 0.45]])
    choice = choose(table, [1.0, 0.1, 0.01])
    assert (choice.best, choice.chosen) == (2, 1)
    assert choice.errors[2] == pytest.approx(0.05 / math.sqrt(3))
    assert choice.limit == pytest.approx(0.45 + 0.05 / math.sqrt(3))
    assert "lam=0.1 is the strongest" in choice.why[1]
    assert "weak end" in choice.why[-1]


def test_of_several_axes_the_least_dense_is_the_strongest():
    table = np.array([[0.50, 0.51, 0.52], [0.60, 0.61, 0.62]])
    assert choose(table, [1.0, 0.1, 0.01]).chosen == 0
    assert choose(table, [1.0, 0.1, 0.01], densities=[0.9, 0.2, 0.5]).chosen == 1
    assert choose(table, [0.1, 1.0, 1.0], densities=[0.2, 0.2, 0.2]).chosen == 1


def test_equal_errors_go_to_the_strongest():
    assert choose(np.ones((3, 3)), [0.1, 1.0, 0.01], rule="min").chosen == 1


def test_folds_weigh_by_their_videos():
    table = np.array([[0.2, 0.9], [0.8, 0.3]])
    assert choose(table, [1.0, 0.1], rule="min", weights=[9, 1]).chosen == 0
    choice = choose(table, [1.0, 0.1], weights=[1, 9])
    means = np.average(table, axis=0, weights=[1, 9])
    spread = np.average((table - means) ** 2, axis=0, weights=[1, 9])
    assert choice.means == pytest.approx(tuple(means))
    assert choice.errors == pytest.approx(tuple(np.sqrt(spread / 1)))


@given(TABLES, st.integers(0, 4), st.integers(0, 1))
def test_a_failed_job_takes_its_fold_from_all(table: np.ndarray, k: int, fold: int):
    if len(table) < 3:
        return
    gap = table.copy()
    gap[fold, k] = np.nan
    choice, without = choose(gap, LAMS), choose(np.delete(table, fold, 0), LAMS)
    assert (choice.chosen, choice.means) == (without.chosen, without.means)
    assert fold not in choice.folds
    assert any(f"{len(table) - 1} of {len(table)} folds" in line for line in choice.why)


def test_what_mostly_failed_is_dropped_and_said():
    table = np.array([[np.nan, 0.5, 0.4], [np.nan, 0.5, 0.41], [np.nan, 0.5, 0.6]])
    choice = choose(table, [1.0, 0.1, 0.01])
    assert choice.dropped == (0,)
    assert choice.means[0] is None
    assert choice.folds == (0, 1, 2)
    assert any("Not judged" in line and "lam=1" in line for line in choice.why)
    most = np.array([[0.3, 0.5], [0.3, 0.5], [np.nan, 0.5], [np.nan, 0.5], [np.nan, 0.5]])
    assert choose(most, [1.0, 0.1]).folds == (0, 1, 2, 3, 4)
    # A gap in every fold, each of another candidate: two folds have to be left.
    scattered = np.array([[np.nan, 0.5, 0.4], [0.4, np.nan, 0.4], [0.4, 0.5, 0.6]])
    assert len(choose(scattered, [1.0, 0.1, 0.01]).folds) >= 2


def test_one_fold_has_no_standard_error():
    table = np.array([[0.5, 0.4]])
    choice = choose(table, [1.0, 0.1], rule="min")
    assert choice.chosen == 1
    assert choice.errors == (None, None)
    with pytest.raises(InputError, match="rule=min"):
        choose(table, [1.0, 0.1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "best"}, "one_se, min"),
        ({"lams": [1.0]}, "one column, lam"),
        ({"densities": [1.0]}, "1 densities"),
        ({"weights": [1.0, 0.0]}, "> 0 a fold"),
        ({"errors": np.full((2, 2), np.nan)}, "4 have none"),
        ({"errors": np.full((2, 2), np.inf)}, "finite mean"),
        ({"errors": np.zeros((2, 0)), "lams": []}, "0 candidates"),
    ],
)
def test_what_cannot_be_judged_is_refused(options: dict, said: str):
    given = {"errors": np.ones((2, 2)), "lams": [1.0, 0.1]} | options
    with pytest.raises(InputError, match=said):
        choose(**given)
