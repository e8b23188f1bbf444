import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regkit.data.clip_spec import Sampling, dense, uniform

available, frames, strides = st.integers(1, 400), st.integers(1, 64), st.integers(1, 9)
rngs = st.one_of(st.none(), st.integers(0, 2**32).map(np.random.default_rng))


@given(available, frames, rngs)
def test_uniform_takes_one_frame_of_each_segment(available, frames, rng):
    indices = uniform(available, frames, rng)
    assert len(indices) == frames
    assert (np.diff(indices) >= 0).all()
    start = np.arange(frames) * available / frames
    assert (indices >= np.floor(start)).all()
    assert (indices <= start + available / frames).all()
    assert indices.max() < available


@given(frames, rngs)
def test_uniform_of_as_many_frames_takes_all(frames, rng):
    np.testing.assert_array_equal(uniform(frames, frames, rng), np.arange(frames))


def test_uniform_without_rng_takes_the_middle():
    np.testing.assert_array_equal(uniform(30, 3), [5, 15, 25])
    np.testing.assert_array_equal(uniform(2, 4), [0, 0, 1, 1])


def test_uniform_reaches_every_frame():
    rng = np.random.default_rng(0)
    seen = {index for _ in range(300) for index in uniform(20, 4, rng).tolist()}
    assert seen == set(range(20))


@given(available, frames, strides, rngs)
def test_dense_walks_by_stride_and_stays_inside(available, frames, stride, rng):
    indices = dense(available, frames, stride, rng)
    assert len(indices) == frames
    assert indices.min() >= 0
    assert indices.max() < available
    if (frames - 1) * stride < available:
        assert (np.diff(indices) == stride).all()
    else:
        expected = np.minimum(np.arange(frames) * stride, available - 1)
        np.testing.assert_array_equal(indices, expected)


def test_dense_without_rng_is_centred():
    np.testing.assert_array_equal(dense(10, 4, 1), [3, 4, 5, 6])


def test_dense_reaches_every_start():
    rng = np.random.default_rng(0)
    assert {int(dense(10, 3, 2, rng)[0]) for _ in range(200)} == set(range(6))


def steady(count: int, fps: float = 25.0) -> np.ndarray:
    return np.arange(count) / fps


@given(available, frames, strides, st.integers(1, 12), st.sampled_from(["uniform", "dense"]))
def test_views_stay_inside_and_move_on(available, frames, stride, views, kind):
    sampling = Sampling(frames, kind, stride, views=views)
    indices = sampling(steady(available), None)
    assert indices.shape == (views, frames)
    assert indices.min() >= 0
    assert indices.max() < available
    assert (np.diff(indices[:, 0]) >= 0).all()


def test_dense_views_reach_from_the_first_frame_to_the_last():
    """Feichtenhofer et al. take ten clips at equal distances along the video."""
    indices = Sampling(4, "dense", 2, views=4)(steady(25), None)
    np.testing.assert_array_equal(indices[:, 0], [0, 6, 12, 18])
    np.testing.assert_array_equal(indices[-1], [18, 20, 22, 24])


def test_one_view_is_the_middle():
    for kind, one in (("uniform", uniform(30, 4)), ("dense", dense(30, 4, 3))):
        np.testing.assert_array_equal(Sampling(4, kind, 3)(steady(30), None), [one])


def test_training_takes_one_view_at_random():
    sampling = Sampling(4, "dense", views=10)
    assert sampling(steady(30), np.random.default_rng(0)).shape == (1, 4)
    starts = {int(sampling(steady(30), np.random.default_rng(n))[0, 0]) for n in range(400)}
    assert starts == set(range(27))


def test_loop_begins_again():
    np.testing.assert_array_equal(
        Sampling(7, "dense", 2, pad="loop")(steady(5), None), [[0, 2, 4, 1, 3, 0, 2]]
    )
    np.testing.assert_array_equal(Sampling(4, "dense", 2)(steady(5), None), [[0, 2, 4, 4]])


def test_a_rate_makes_videos_of_all_rates_alike():
    """Clips of one second, whatever the camera; the same moments."""
    sampling = Sampling(10, "dense", fps=10.0)
    for fps in (10.0, 20.0, 25.0, 30.0, 60.0, 7.5):
        times = steady(round(4 * fps), fps)
        (indices,) = sampling(times, None)
        assert abs(times[indices[-1]] - times[indices[0]] - 0.9) < 2 / fps
        assert times[indices[0]] == pytest.approx(1.5, abs=1 / fps)


@given(
    st.lists(st.integers(1, 500), min_size=2, max_size=60),
    st.floats(0.5, 60),
    st.integers(0, 10**6),
)
def test_law_a_rate_shows_what_is_on_the_screen(steps_ms, fps, seed):
    """By the definition: the frame at moment t is the last that appeared at or before t."""
    times = np.cumsum([0, *steps_ms]) / 1000
    start = 3.7  # of the part of a longer file
    sampling = Sampling(4096, "dense", fps=fps)
    (indices,) = sampling(times + start, None)
    count = max(1, round(times[-1] * len(times) / (len(times) - 1) * fps))
    for k in range(0, min(count, 4096), 1 + seed % 7):
        moment = k / fps + 2e-6
        shown = max(i for i, t in enumerate(times) if t <= moment)
        early = max(i for i, t in enumerate(times) if t <= k / fps - 2e-6) if k else 0
        assert indices[k] in range(early, shown + 1)
