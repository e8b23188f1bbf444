"""Smoothing against the definitions."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regkit.errors import InputError
from regkit.inference.predict.result import UNSURE, Smoothing, average, borders, segments, viterbi


def rows(seed: int, count: int, classes: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.4), count)


def worth(path, p: np.ndarray, stays: np.ndarray, price: float) -> float:
    """Score a path by the formula."""
    gain = sum(s * np.log(max(row[c], 1e-3)) for c, row, s in zip(path, p, stays, strict=True))
    return gain - price * sum(a != b for a, b in pairwise(path))


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 7),
    classes=st.integers(1, 4),
    price=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 50.0]),
)
def test_viterbi_beats_every_path(seed: int, count: int, classes: int, price: float):
    p = rows(seed, count, classes)
    stays = np.random.default_rng(seed + 1).uniform(0, 2, count)
    best = max(worth(path, p, stays, price) for path in product(range(classes), repeat=count))
    found = viterbi(p, stays, price)
    assert worth(found.tolist(), p, stays, price) == pytest.approx(best, abs=1e-9)


def test_viterbi_without_a_price_takes_the_top_class_of_each_window():
    p = rows(0, 200, 5)
    assert viterbi(p, np.ones(200), 0.0).tolist() == p.argmax(1).tolist()


def test_a_change_pays_after_its_seconds():
    """e times as probable for longer than the price: the path changes."""
    likely = np.array([np.e, 1]) / (1 + np.e)
    for seconds, changes in ((0.9, 0), (1.1, 1)):
        p = np.stack([likely] * 40 + [likely[::-1]] * 10)
        stays = np.array([1.0] * 40 + [seconds / 10] * 10)
        path = viterbi(p, stays, 1.0)
        assert np.count_nonzero(np.diff(path)) == changes


def test_another_hop_gives_the_same_path():
    p = rows(3, 30, 3)
    coarse = viterbi(p, np.full(30, 1.0), 1.5)
    fine = viterbi(p.repeat(4, 0), np.full(120, 0.25), 1.5)
    assert fine.tolist() == coarse.repeat(4).tolist()


@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), seconds=st.floats(0, 10))
def test_average_is_the_mean_of_what_is_near(seed: int, count: int, seconds: float):
    rng = np.random.default_rng(seed)
    p, centres = rows(seed, count, 3), rng.integers(0, 200, count).cumsum() / 10
    gaps = np.abs(centres[:, None] - centres)
    if (np.abs(gaps - seconds / 2) < 2e-3).any():
        return  # at the border either is right
    expected = [p[np.abs(centres - c) <= seconds / 2].mean(0) for c in centres]
    np.testing.assert_allclose(average(p, centres, seconds), expected, atol=1e-12)


def test_a_label_is_told_of_the_centre():
    assert borders(np.array([1.0, 2.0, 4.0]), 6.0).tolist() == [0, 1.5, 3, 6]
    assert borders(np.array([0.5]), 1.0).tolist() == [0, 1]


def test_segments_join_neighbours():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    edges = np.array([0, 1.0, 4.0, 5.0, 6.0])
    found = segments([0, 0, 1, UNSURE], edges, p)
    assert [(s.start_s, s.end_s, s.label) for s in found] == [(0, 4, 0), (4, 5, 1), (5, 6, UNSURE)]
    assert [s.probability for s in found] == pytest.approx([(0.9 + 3 * 0.6) / 4, 0.8, 0.5])


@pytest.mark.parametrize("way", ["none", "average", "viterbi"])
def test_below_the_threshold_windows_are_unsure(way: str):
    p = np.array([[0.95, 0.05]] * 6 + [[0.55, 0.45]] * 6)
    centres = np.arange(12.0)
    edges = borders(centres, 12.0)
    _, labels = Smoothing(way, 0.1, 0.8)(p, centres, edges)
    assert labels.tolist() == [0] * 6 + [UNSURE] * 6
    _, labels = Smoothing(way, 0.1)(p, centres, edges)
    assert labels.tolist() == [0] * 12


def test_ways_differ():
    p = np.array([[0.9, 0.1]] * 5 + [[0.3, 0.7]] + [[0.9, 0.1]] * 5)
    centres = np.arange(11.0)
    edges = borders(centres, 11.0)
    for way, top in (("none", 1), ("average", 0), ("viterbi", 0)):
        smooth, labels = Smoothing(way, 2.0)(p, centres, edges)
        assert labels[5] == top
        assert (way == "average") != np.array_equal(smooth, p)


def test_smoothing_refuses():
    for wrong in ({"way": "median"}, {"seconds": -1.0}, {"threshold": 1.5}):
        with pytest.raises(InputError, match="predict got"):
            Smoothing(**wrong)
