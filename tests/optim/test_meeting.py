"""The search for strengths: all at once, each against a density that is known as a formula."""

from collections.abc import Mapping

import pytest

from regkit.optim.density_search import NUM_TRIALS, meet

TRIED: list[dict[str, float]] = []


def left(strengths: Mapping[str, float]) -> dict[str, float]:
    """Leave 1 / (1 + s) of each."""
    TRIED.append(dict(strengths))
    return {name: 1 / (1 + s) for name, s in strengths.items()}


@pytest.fixture(autouse=True)
def none_tried() -> None:
    TRIED.clear()


def test_what_has_met_its_bounds_waits_for_the_others():
    found, searched = meet({"a": (0.5, 0.5), "b": (0.2, 0.2)}, {"a": 1.0, "b": 1.0}, left)
    assert searched
    assert found == TRIED[-1] == {"a": 1.0, "b": 4.0}
    assert len(TRIED) == 2


def test_each_is_halved_down_to_its_bounds():
    bounds = {"a": (0.3, 0.3), "b": (0.9, 0.9), "c": (0.05, 0.05)}
    found, _ = meet(bounds, dict.fromkeys("abc", 1.0), left)
    assert found == TRIED[-1]
    for name, (low, _) in bounds.items():
        assert left(found)[name] == pytest.approx(low, rel=2e-3)


def test_bounds_that_hold_at_once_change_nothing():
    found, searched = meet({"a": (0.4, 1.0)}, {"a": 1.0, "free": 9.0}, left)
    assert not searched
    assert found == {"a": 1.0, "free": 9.0}
    assert len(TRIED) == 1


def test_what_cannot_be_met_ends_as_near_as_it_came():
    """Steps of a quarter: 0.4 lies between, 0.5 is nearer than 0.25."""

    def stairs(strengths: Mapping[str, float]) -> dict[str, float]:
        shares = left(strengths)
        return {name: round(4 * share) / 4 for name, share in shares.items()}

    found, searched = meet({"a": (0.4, 0.4)}, {"a": 0.01}, stairs)
    assert searched
    assert found == TRIED[-1]
    assert stairs(found) == {"a": 0.5}
    assert len(TRIED) == NUM_TRIALS + 2
