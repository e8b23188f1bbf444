import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from regkit.data.sampling import dense, uniform

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
