"""The schedule: pure functions of progress, by hand."""

import math
from functools import partial
from typing import Any

import pytest

from regkit import InputError, Schedule
from regkit.optim.schedule import Progress

NUM_STEPS = 100


@pytest.mark.parametrize(
    ("ramp", "quarter", "half"),
    [("linear", 0.25, 0.5), ("cosine", (1 - math.cos(math.pi / 4)) / 2, 0.5),
     ("cubic", 1 - 0.75**3, 0.875)],
)  # fmt: skip
def test_ramps_by_hand(ramp: str, quarter: float, half: float):
    strength = Schedule(ramp=ramp, ramp_until=0.8).strength
    assert strength(0.0) == 0.0
    assert strength(0.2) == pytest.approx(quarter)
    assert strength(0.4) == pytest.approx(half)
    assert strength(0.8) == strength(0.99) == strength(1.0) == 1.0
    course = [strength(t / NUM_STEPS) for t in range(NUM_STEPS)]
    assert course == sorted(course)


def test_without_a_ramp_the_strength_is_full_from_the_first_step():
    assert Schedule().strength(0.0) == Schedule(debias=0.5).strength(0.0) == 1.0
    assert Schedule(ramp="linear", ramp_until=0.0).strength(0.0) == 1.0


def steps(holds: Any) -> list[int]:
    """Return the steps, counted from 1, for whose end something holds."""
    return [t for t in range(1, NUM_STEPS + 1) if holds(t / NUM_STEPS)]


def test_phases_begin_with_the_step_that_leads_beyond_their_share():
    assert steps(Schedule(debias=0.8).is_debiasing) == list(range(81, 101))
    assert steps(Schedule(debias=0.8).keeps_zeros) == list(range(81, 101))
    both = Schedule(settle=0.6, debias=0.8)
    assert steps(both.keeps_zeros) == list(range(61, 101))
    assert steps(both.is_debiasing) == list(range(81, 101))
    assert steps(Schedule(debias=0.0).is_debiasing) == list(range(1, 101))
    assert steps(Schedule(debias=1.0).is_debiasing) == []
    assert steps(Schedule(settle=0.6).is_debiasing) == []


def test_the_density_falls_by_a_cubic_to_its_target():
    wanted = partial(Schedule(target_density=0.2, ramp_until=0.8).wanted, share=0.2)
    assert wanted(0.0) == 1.0
    assert wanted(0.4) == pytest.approx(1 - 0.8 * 0.875)
    assert wanted(0.8) == wanted(1.0) == pytest.approx(0.2)


def test_the_target_is_met_before_the_end_or_before_the_penalty_is_off():
    assert Schedule(target_density=0.2).closing == (pytest.approx(0.9), 1.0)
    assert Schedule(target_density=0.2, debias=0.7).closing == (pytest.approx(0.6), 0.7)


@pytest.mark.parametrize(
    ("options", "progress", "left"),
    [
        ({}, 0.1, []),
        ({"ramp": "cubic"}, 0.4, ["ramp_until=0.5"]),
        ({"ramp": "cubic"}, 0.5, []),
        ({"settle": 0.6, "debias": 0.8}, 0.7, ["debias=0.8"]),
        ({"settle": 0.6, "debias": 0.8}, 0.6, ["settle=0.6", "debias=0.8"]),
        ({"settle": 0.6, "debias": 0.8}, 0.81, []),
        ({"debias": 1.0}, 1.0, []),
    ],
)
def test_phases_that_never_came_are_named(
    options: dict[str, Any], progress: float, left: list[str]
):
    assert Schedule(**options).unfinished(progress) == left


@pytest.mark.parametrize(
    ("options", "depends"),
    [
        ({}, False),
        ({"num_steps": 10, "ramp_until": 0.2}, False),
        ({"ramp": "linear"}, True),
        ({"target_density": 0.5}, True),
        ({"settle": 0.0}, True),
        ({"debias": 0.0}, True),
    ],
)
def test_what_changes_in_the_course_of_training_is_known(options: dict[str, Any], depends: bool):
    assert Schedule(**options).depends_on_progress == depends


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ramp": "square"}, "ramp='square'; it is one of linear, cosine, cubic"),
        ({"ramp_until": 1.5}, "a share of training"),
        ({"target_density": 0.0}, "between 0 and 1"),
        ({"debias": -0.1}, "0 to 1"),
        ({"settle": float("nan")}, "settle=nan; it is a share of training"),
        ({"num_steps": 0}, "1 or more"),
        ({"ramp": "cubic", "target_density": 0.3}, "Leave ramp out"),
        ({"layerwise": True}, "without a target"),
        ({"target_density": 0.3, "target_flops": 0.5}, "Give one"),
        ({"target_density": 2.0}, "between 0 and 1."),
        ({"target_flops": 1.0}, "between 0 and 1, or above 1 in its unit"),
        ({"target_latency": float("inf")}, "above 1 in its unit"),
        ({"ramp": "cubic", "target_latency": 0.3}, "Leave ramp out"),
        ({"multiple_of": 8}, "multiple_of=8 without a budget"),
        ({"multiple_of": 0, "target_flops": 0.3}, "give 1 or more"),
        ({"target_parameters": 0.5, "settle": 0.2}, "Make ramp_until smaller"),
        ({"ramp": "cubic", "debias": 0.2}, "Make ramp_until smaller"),
        ({"target_density": 0.5, "settle": 0.2}, "Make ramp_until smaller"),
        ({"settle": 0.8, "debias": 0.6}, "Leave settle out"),
    ],
)
def test_options_are_checked_at_the_door(options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=f"^Schedule got .*{said}"):
        Schedule(**options)


def test_progress_never_goes_back():
    progress = Progress()
    assert progress.value is None
    for share, reached in [(0.3, 0.3), (0.1, 0.3), (0.5, 0.5), (7.0, 1.0), (-1.0, 1.0)]:
        progress.reach(share)
        assert progress.value == reached
