from pathlib import Path

import av
import numpy as np
from small_films import TINY

from regkit.benchmarks.reading import films


def decoded(path: Path) -> tuple[np.ndarray, list[int], list[float]]:
    """Return frames, the numbers of keyframes, and times."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    keys = [number for number, frame in enumerate(frames) if frame.key_frame]
    times = [frame.time for frame in frames]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), keys, times


def test_a_film_is_what_its_kind_says(tiny):
    frames, keys, times = decoded(tiny)
    assert frames.shape == (30, 64, 96, 3)
    assert keys == [0, 6, 12, 18, 24]
    np.testing.assert_allclose(times, np.arange(30) / 25, atol=1e-6)
    drawn = np.stack(list(films.pictures(TINY, 30)))
    assert np.abs(frames.astype(int) - drawn).mean() < 12  # coded, with less colour
    moves = np.abs(np.diff(drawn.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert moves.min() > 0
    assert np.median(moves) > 2


def test_films_are_the_same_every_time():
    one, two = (np.stack(list(films.pictures(TINY, 3))) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_film_repeated_is_the_film_over_and_over(tiny, tmp_path):
    path = films.repeat(tiny, 3, tmp_path)
    frames, keys, times = decoded(path)
    once, _, _ = decoded(tiny)
    np.testing.assert_array_equal(frames, np.concatenate([once] * 3))
    assert keys == [30 * piece + key for piece in range(3) for key in (0, 6, 12, 18, 24)]
    np.testing.assert_allclose(times, np.arange(90) / 25, atol=1e-6)
