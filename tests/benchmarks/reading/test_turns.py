from collections.abc import Callable

import numpy as np
import pytest

from regkit.benchmarks.reading import rounds as contest
from regkit.benchmarks.reading.candidates import Contestant, Film
from regkit.timing import Quartiles

CLIP = np.zeros((1, 1, 2, 2, 3), dtype=np.uint8)


def silent(name: str, **options) -> Contestant:
    return Contestant(name, lambda index, draw: CLIP, **options)


def film(num_files: int, alike: bool) -> Film:
    return Film("some", ["x.mp4"] * num_files, [(2, 2)] * num_files, "nowhere", alike)


def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clocks: the wall's goes twice as fast."""
    now = [0.0]
    monkeypatch.setattr(contest.time, "process_time", lambda: now[0])
    monkeypatch.setattr(contest.time, "perf_counter", lambda: 2 * now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


@pytest.mark.parametrize(
    ("alike", "steady", "read"),
    [
        (True, False, [(0, 4), (1, 5), (0, 6)]),
        (True, True, [(0, 4)]),
        (False, True, [(0, 4), (1, 5), (0, 6)]),
    ],
)
def test_time_is_that_of_a_clip(monkeypatch, alike, steady, read):
    passes, asked = clocked(monkeypatch), []

    def reading(index: int, draw: int) -> np.ndarray:
        asked.append((index, draw))
        passes(0.5)
        return CLIP

    entrant = Contestant("slow", reading, num_clips=10, steady=steady)
    sample = contest.time_clips(film(2, alike), entrant, range(4, 7))
    assert asked == read
    assert sample == pytest.approx({"cpu": 50.0, "wall": 100.0})


def test_ratios_are_taken_within_a_round():
    samples = {
        "slow": [{"cpu": 10.0}, {"cpu": 40.0}, {"cpu": 90.0}],
        "fast": [{"cpu": 1.0}, {"cpu": 2.0}, {"cpu": 3.0}],
    }
    row = contest.row_of("film", "dense", "fast", samples, ("slow", "absent"))
    assert row.ms == {"cpu": Quartiles(1.5, 2.0, 2.5)}
    assert row.faster == {"slow": {"cpu": Quartiles(15.0, 20.0, 25.0)}}


def test_the_first_rounds_do_not_count(monkeypatch):
    passes, costs = clocked(monkeypatch), iter([100.0, 1.0, 1.0])

    def reading(index: int, draw: int) -> np.ndarray:
        passes(next(costs))
        return CLIP

    (row,) = contest._heat(film(2, True), "dense", [Contestant("a", reading)], 2, 1, ("a",))
    assert row.ms["cpu"] == Quartiles(1000.0, 1000.0, 1000.0)
