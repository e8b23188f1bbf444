"""The strengths that bring a density to its target: the search, and the feedback around it.

The search runs against densities that are known as formulas.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from regkit import Schedule
from regkit.optim.density_control import (
    FAR,
    FIRST_TRIALS,
    GLOBAL,
    NUM_TRIALS,
    Bracket,
    DensityController,
    Factors,
    solve,
)

TRIED: list[dict[str, float]] = []
STRIDE = 0.01  # of progress, by one step


def left(factors: Mapping[str, float]) -> dict[str, float]:
    """Leave 1 / (1 + s) of each."""
    TRIED.append(dict(factors))
    return {name: 1 / (1 + s) for name, s in factors.items()}


@pytest.fixture(autouse=True)
def none_tried() -> None:
    TRIED.clear()


def test_what_has_met_its_bounds_waits_for_the_others():
    found = solve({"a": (0.5, 0.5), "b": (0.2, 0.2)}, {"a": 1.0, "b": 1.0}, left)
    assert found == TRIED[-1] == pytest.approx({"a": 1.0, "b": 4.0})
    assert len(TRIED) == 2


def test_each_is_halved_down_to_its_bounds():
    bounds = {"a": (0.3, 0.3), "b": (0.9, 0.9), "c": (0.05, 0.05)}
    found = solve(bounds, dict.fromkeys("abc", 1.0), left)
    assert found == TRIED[-1]
    for name, (low, _) in bounds.items():
        assert left(found)[name] == pytest.approx(low, rel=2e-3)


def test_bounds_that_hold_at_once_change_nothing():
    found = solve({"a": (0.4, 1.0)}, {"a": 1.0, "free": 9.0}, left)
    assert found == {"a": 1.0, "free": 9.0}
    assert len(TRIED) == 1


@pytest.mark.parametrize("scale", [1e-40, 1e40])
def test_a_strength_many_orders_of_magnitude_away_is_found(scale: float):
    def scaled(factors: Mapping[str, float]) -> dict[str, float]:
        return left({name: s / scale for name, s in factors.items()})

    found = solve({"a": (0.4, 0.6)}, {"a": 1.0}, scaled, FIRST_TRIALS)
    assert 0.4 <= scaled(found)["a"] <= 0.6


def test_what_cannot_be_met_ends_as_near_as_it_came():
    """Steps of a quarter: 0.4 lies between, 0.5 is nearer than 0.25."""

    def stairs(factors: Mapping[str, float]) -> dict[str, float]:
        shares = left(factors)
        return {name: round(4 * share) / 4 for name, share in shares.items()}

    found = solve({"a": (0.4, 0.4)}, {"a": 0.01}, stairs)
    assert found == TRIED[-1]
    assert stairs(found) == {"a": 0.5}
    assert len(TRIED) == NUM_TRIALS + 2


def test_anything_is_nearer_than_nothing():
    """All weights are equal: 0.3 is nearer to none than to all, but none could not come back."""
    found = solve({"a": (0.3, 0.3)}, {"a": 1.0}, lambda f: {"a": float(f["a"] < 7.0)})
    assert found["a"] < 7.0
    found = solve({"a": (0.3, 0.3)}, {"a": 1.0}, lambda f: {"a": 0.0})
    assert found["a"] > 0


def test_a_bracket_keeps_the_best_that_it_has_seen():
    bracket = Bracket(0.5, 0.5, 1.0)
    for density in (0.9, 0.4, 0.7):
        bracket.update(density)
        last = bracket.next()
    assert not bracket.is_met
    assert bracket.best == pytest.approx(4.0)
    assert bracket.best > last > 2.0
    bracket.update(0.5)
    assert bracket.is_met
    assert bracket.next() == bracket.best == pytest.approx(last)


def test_factors_of_a_part():
    assert Factors(2.0).of("any") == 2.0
    each = Factors(2.0, {"a": 3.0})
    assert (each.of("a"), each.of("b")) == (6.0, 2.0)
    assert Factors(None, {"a": 3.0}).of("a") is None


def controller(**options: Any) -> DensityController:
    return DensityController(Schedule(**options))


def test_the_strength_follows_what_there_is_too_much():
    """By hand: 60 per density and training of the integral, 3 per density of the proportional."""
    one = controller(target_density=0.5, ramp_until=0.0)
    assert one.factors == Factors(1.0, None, searched=True)
    one.observe(0.1, {GLOBAL: 0.7})
    assert one.factors.common == pytest.approx(2.718281828 ** (60 * 0.1 * 0.2 + 3 * 0.2))
    one.observe(0.2, {GLOBAL: 0.4})
    exponent = 60 * 0.1 * (0.2 - 0.1) + 3 * -0.1
    assert one.factors.common == pytest.approx(2.718281828**exponent)


def test_it_looks_four_hundred_times_and_before_the_closing():
    one = controller(target_density=0.5)
    one.begin(0.0, {GLOBAL: 1.0}, 1.0)
    looks = []
    for step in range(1, 10_001):
        if one.is_due(step / 10_000, 1 / 10_000):
            one.observe(step / 10_000, {GLOBAL: 0.6})
            looks.append(step)
    assert looks[:3] == [25, 50, 75]
    before = [step for step in looks if step < 9000]
    # Rounding may put a look off by a step.
    assert {b - a for a, b in itertools.pairwise(before)} <= {25, 26}
    assert {9000, 9001, 9002} < set(looks)
    one.adopt({GLOBAL: 1.0}, closing=True)
    assert not one.is_due(0.91, 1 / 10_000)


@pytest.mark.parametrize("given", [1e-3, 1.0, 5.0])
def test_a_sensible_lam_is_where_the_search_starts(given: float):
    """It would do in one step at 1 / given: given is how much too strong it is for one step."""
    one = controller(target_density=0.5)
    assert one.is_new()
    one.begin(STRIDE, {GLOBAL: 10.0 / given}, 50.0)
    assert not one.is_new()
    assert one.factors.common == 1.0


@pytest.mark.parametrize("critical", [1e-9, 0.5, 2 * FAR * 50, 1e30])
def test_an_absurd_lam_is_not(critical: float):
    """Too strong for a single step, or too weak for all of them: then what does in 50 steps."""
    one = controller(target_density=0.5)
    one.begin(STRIDE, {GLOBAL: critical}, 50.0)
    assert one.factors.common == pytest.approx(critical / 50)


def test_no_step_takes_a_layer_below_the_target():
    """Channels that have died stay dead; each layer is held by itself, and from the start."""
    one, names = controller(target_density=0.5, layerwise=True), ("near", "far")
    free = dict.fromkeys(names, (0.5, 1.0))
    assert one.bounds(0.01, STRIDE, names) == free
    one.observe(0.01, {GLOBAL: 0.7, "near": 0.55, "far": 0.9})
    assert one.bounds(0.02, STRIDE, names) == free
    factors = one.factors.layers
    assert factors is not None
    assert factors["near"] < 1 < factors["far"]
    # The closing: from where each is, halfway down to the target.
    one.observe(0.9, {GLOBAL: 0.575, "near": 0.55, "far": 0.6})
    one.adopt({"near": 1.0, "far": 1.0}, closing=True)
    assert one.bounds(0.96, STRIDE, names) == {
        name: (pytest.approx(0.5),) * 2 for name in names
    }  # fmt: skip
    assert one.bounds(0.93, STRIDE, [*names, "new"]) == {
        name: (pytest.approx(wanted),) * 2
        for name, wanted in (("near", 0.52), ("far", 0.54), ("new", 0.5))
    }


def test_the_last_step_of_a_short_training_ends_at_the_target():
    """Four steps: the closing is less than one of them."""
    one = controller(target_density=0.5)
    one.observe(0.75, {GLOBAL: 0.9})
    assert one.bounds(0.75, 0.25, [GLOBAL]) == {GLOBAL: (0.5, 1.0)}
    assert one.bounds(1.0, 0.25, [GLOBAL]) == {GLOBAL: (0.5, 0.5)}
    early = controller(target_density=0.5, debias=0.7)
    early.observe(0.5, {GLOBAL: 0.9})
    assert early.bounds(0.65, 0.1, [GLOBAL]) == {GLOBAL: (0.5, 0.5)}


def test_training_goes_on_from_the_strengths_that_were_found():
    one = controller(target_density=0.2)
    one.adopt({GLOBAL: 3.0}, closing=False)
    assert one.factors.common == pytest.approx(3.0)
    assert one.named([GLOBAL]) == pytest.approx({GLOBAL: 3.0})
    each = controller(target_density=0.5, layerwise=True)
    each.observe(0.01, {GLOBAL: 0.6, "a": 0.6, "b": 0.6})
    each.adopt({"a": 3.0, "b": 0.5}, closing=False)
    assert each.factors.layers == pytest.approx({"a": 3.0, "b": 0.5})
    assert each.named(["a", "new"]) == pytest.approx({"a": 3.0, "new": 1.0})


def test_the_closing_course_is_saved_with_where_it_began():
    one = controller(target_density=0.2)
    one.observe(0.9, {GLOBAL: 0.6})
    one.adopt({GLOBAL: 1.0}, closing=True)
    other = controller(target_density=0.2)
    other.load_state_dict(one.state_dict())
    other.adopt({GLOBAL: 1.0}, closing=True)
    for each in (one, other):
        assert each.bounds(0.92, STRIDE, [GLOBAL]) == {GLOBAL: pytest.approx((0.44, 0.44))}
    assert one.bounds(1.0, STRIDE, [GLOBAL]) == {GLOBAL: pytest.approx((0.2, 0.2))}


def test_of_equal_misses_the_weaker_penalty_is_taken():
    """All strengths below 7 leave 0.5; at the edge the next survivor would be worn to nothing."""
    found = solve({"a": (0.4, 0.4)}, {"a": 1.0}, lambda f: {"a": 0.5 if f["a"] < 7 else 0.25})
    assert found["a"] <= 1.0
