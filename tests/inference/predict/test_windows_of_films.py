"""Where windows lie, and that frames are gathered from one reading."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regkit.data.clip_spec import ClipSpec, Sampling
from regkit.data.timeline import Timeline
from regkit.data.video import Video
from regkit.errors import InputError
from regkit.inference.predict.film import Sliding
from regkit.inference.predict.windows import Span, edges_of, gather, lay, plan, shown, span, wanted

UNIFORM = Sampling(4)


def regular(num_frames: int, fps: float = 25.0) -> np.ndarray:
    return np.arange(num_frames + 1) / fps


def timeline_of(edges: np.ndarray) -> Timeline:
    pts = np.round(edges[:-1] * 1000).astype(np.int64)
    return Timeline(pts, np.ones(len(pts), dtype=bool), True, 1e-3, 48, 32)


# Films whose frames stay for 1 to 400 ms.
varied = st.lists(st.integers(1, 400), min_size=1, max_size=60).map(
    lambda stays: np.concatenate([[0], np.cumsum(stays)]) / 1000
)


def test_windows_of_a_regular_film():
    found = lay(regular(125), Span(2.0), 1.0)
    assert [(w.start_s, w.end_s) for w in found] == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert [(w.first, w.last) for w in found] == [(0, 50), (25, 75), (50, 100), (75, 125)]
    assert found[0].centre_s == 1


def test_the_last_window_ends_with_the_film():
    found = lay(regular(135), Span(2.0), 1.0)
    assert [(w.first, w.last) for w in found][-2:] == [(75, 125), (85, 135)]


@pytest.mark.parametrize("num_frames", [1, 2, 49, 50])
def test_a_film_no_longer_than_a_window_is_one(num_frames: int):
    (only,) = lay(regular(num_frames), Span(2.0), 1.0)
    assert (only.first, only.last) == (0, num_frames)


def test_windows_of_counted_frames():
    found = lay(regular(20, 10.0), Span(None, 8), 0.4)
    assert [(w.first, w.last) for w in found] == [(0, 8), (4, 12), (8, 16), (12, 20)]


def test_a_frame_that_stays_is_in_one_window():
    edges = np.array([0, 0.1, 0.2, 9.0, 9.1, 9.2])  # a pause of 8.8 s
    found = lay(edges, Span(0.5), 0.1)
    assert [(w.first, w.last) for w in found] == [(0, 3), (1, 3), (2, 3), (2, 5)]


@given(edges=varied, window_ms=st.integers(1, 900), hop_ms=st.integers(1, 900))
def test_windows_cover_every_frame_and_never_go_back(edges, window_ms: int, hop_ms: int):
    found = lay(edges, Span(window_ms / 1000), hop_ms / 1000)
    starts, ends = [w.first for w in found], [w.last for w in found]
    assert starts == sorted(starts)
    assert ends == sorted(ends)
    assert ends[-1] == len(edges) - 1
    if hop_ms + 1000 * np.diff(edges).max() <= window_ms:
        assert set().union(*(range(w.first, w.last) for w in found)) == set(range(len(edges) - 1))
    for w in found:  # and each no longer than it must be
        long_enough = w.end_s - w.start_s >= window_ms / 1000 - 1e-5
        assert long_enough or (w.first, w.last) == (0, len(edges) - 1)
        needs_last = w.last == w.first + 1 or edges[w.last - 1] < w.start_s + window_ms / 1000
        needs_first = w.end_s - edges[w.first + 1] < window_ms / 1000
        assert needs_last or (w is found[-1] and needs_first)


@given(edges=varied, hop_ms=st.integers(1, 900))
def test_a_window_begins_with_the_frame_that_is_shown_at_each_hop(edges, hop_ms: int):
    """Check each hop of the plain definition, frame by frame."""
    found = {w.first for w in lay(edges, Span(0.2), hop_ms / 1000)}
    moment = 0.0
    while moment + 0.2 < edges[-1] - 1e-5:
        on_screen = max(k for k in range(len(edges) - 1) if edges[k] <= moment + 1e-6)
        if edges[on_screen] + 0.2 < edges[-1] - 1e-5:
            assert on_screen in found
        moment += hop_ms / 1000


def test_what_is_shown():
    times = np.array([0, 0.5, 1.0])
    assert [shown(times, t) for t in (-1.0, 0.0, 0.49, 0.5, 0.7, 5.0)] == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "sampling",
    [UNIFORM, Sampling(4, "dense", 2), Sampling(4, "dense", 1, fps=10.0)],
    ids=["uniform", "dense", "dense at a rate"],
)
def test_the_frames_of_a_window_are_those_of_evaluation(sampling: Sampling):
    """Ask ClipSpec for the part of the file that the window is."""
    edges = regular(100)
    timeline = timeline_of(edges)
    length = span(sampling, None)
    windows = lay(edges, length, 0.2)
    assert len(windows) > 3
    for window, indices in zip(windows, plan(timeline.times_s, windows, sampling), strict=True):
        video = Video("", 0, "", window.start_s, window.end_s)
        np.testing.assert_array_equal(
            indices, ClipSpec(sampling, 32, 32).indices(video, timeline, None)
        )


@pytest.mark.parametrize("fps", [5.0, 10.0, 25.0, 30000 / 1001])
@pytest.mark.parametrize("rate", [None, 4.0, 10.0, 30.0])
def test_dense_windows_have_all_their_frames(fps: float, rate: float | None):
    """A clip in the middle of a film repeats its last frame no more than the rate asks for."""
    sampling = Sampling(8, "dense", 2, fps=rate)
    edges = regular(300, fps)
    stay = 1 / fps
    length = span(sampling, None)
    for indices in plan(edges[:-1], lay(edges, length, length.length_s(stay) / 2), sampling):
        (row,) = indices
        wanted = np.arange(8) * 2 * (1 if rate is None else fps / rate)
        assert np.abs(row - row[0] - wanted).max() <= 1 + 1e-6


@given(edges=varied, window_ms=st.integers(1, 900), hop_ms=st.integers(20, 900))
def test_frames_are_gathered_once_and_let_go(edges, window_ms: int, hop_ms: int):
    windows = lay(edges, Span(window_ms / 1000), hop_ms / 1000)
    rows = plan(edges[:-1], windows, UNIFORM)
    read: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for number in wanted(rows).tolist():
            read.append(number)
            yield np.full((2, 2, 3), number, dtype=np.uint8)

    for indices, frames in zip(rows, gather(pictures(), rows), strict=True):
        assert frames[:, 0, 0, 0].tolist() == np.unique(indices).tolist()
        assert read[-1] == max(read) >= indices.max()
    assert read == sorted(set(read))


def test_gathering_keeps_no_more_than_the_windows_need():
    """Count living frames of an hour's film."""
    edges = regular(90_000)
    rows = plan(edges[:-1], lay(edges, Span(2.0), 1.0), Sampling(16))
    alive = set()

    class Frame(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def pictures() -> Iterator[np.ndarray]:
        for _ in wanted(rows):
            frame = np.zeros((1, 1, 3), dtype=np.uint8).view(Frame)
            alive.add(id(frame))
            yield frame

    most = max(len(alive) for _ in gather(pictures(), rows))
    assert most <= 33


def test_edges_of_one_frame_are_apart():
    lone = Timeline(np.array([7]), np.array([True]), True, 0.04, 8, 8)
    assert edges_of(lone).tolist() == [0, 0.04]


def test_refusals():
    dense = Sampling(16, "dense", 2, fps=12.5)
    assert span(dense, None) == Span(31 / 12.5)
    assert span(Sampling(16, "dense", 2), None) == Span(None, 31)
    assert span(UNIFORM, None) == Span(2.0)
    with pytest.raises(InputError, match=r"dense clips of 31 frames at 12\.5 fps"):
        span(dense, 2.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="window_s"):
            span(UNIFORM, wrong)
        with pytest.raises(InputError, match="hop_s"):
            Sliding(None, wrong)
