"""All read the same frames, so that their times can be compared."""

from dataclasses import replace

import numpy as np
import pytest
from small_films import GREY_STEP, NUM_FRAMES

from regkit.benchmarks.reading import candidates as contestants
from regkit.benchmarks.reading import films
from regkit.benchmarks.reading.candidates import DECORD, WHOLE, Contestant, Film, Task, absent

TASK = Task(num_frames=8, stride=2, short_px=32, threads=1)


@pytest.fixture
def film(numbered, tmp_path) -> Film:
    return films.film("numbered", [str(numbered)], TASK, tmp_path)


def numbers(clips: np.ndarray) -> list[list[int]]:
    """Tell from their grey which frames these are; scalers make it darker by up to 3 levels."""
    return ((clips.mean(axis=(2, 3, 4)) + 1) / GREY_STEP).round().astype(int).tolist()


def assert_sound(entrant: Contestant, clips: np.ndarray) -> None:
    assert clips.shape == (entrant.num_clips, 8, 32, 32, 3), entrant.name
    assert clips.dtype == np.uint8


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
def test_all_read_the_same_frames(film, sampling):
    task = replace(TASK, sampling=sampling)
    entrants = contestants.training(film, task)
    missing = 2 * ("torchcodec" in absent()) + ("decord" in absent())
    assert len(entrants) == 7 - missing - len(film.left_out)
    assert film.left_out.keys() <= {DECORD}  # 0.6.0 cannot scale to 48 px, though to 171
    assert len({entrant.name for entrant in entrants}) == len(entrants)
    drawn = []
    for index, draw in ((0, 0), (1, 0), (0, 1), (1, 7)):
        found = {}
        for entrant in entrants:
            clips = entrant.read(index, draw)
            assert_sound(entrant, clips)
            found[entrant.name] = numbers(clips)
        (only,) = {str(clip) for clip in found.values()}
        drawn.append(only)
        (clip,) = found[WHOLE]
        gaps = np.diff(clip)
        if sampling == "dense":
            assert (gaps == 2).all()
        else:
            segment = NUM_FRAMES // 8
            assert [number // segment for number in clip] == list(range(8))
    assert len(set(drawn)) == 4


def test_scaled_frames_look_alike(tiny, tmp_path):
    film = films.film("tiny", [str(tiny)], TASK, tmp_path)
    truth, *others = contestants.training(film, TASK)
    for other in others:
        off = np.abs(other.read(0, 3).astype(int) - truth.read(0, 3)).mean()
        assert off < 8, other.name  # the copies are coded twice


def test_views_are_the_same_read_once_or_ten_times(film):
    ten, one = contestants.views(film, TASK)
    clips = ten.read(0, 0)
    assert_sound(ten, clips)
    np.testing.assert_array_equal(one.read(0, 0), clips)
    assert_sound(one, clips)
    starts = [clip[0] for clip in numbers(clips)]
    assert starts == np.linspace(0, NUM_FRAMES - 15, 10).astype(int).tolist()


def test_threads_change_no_frame(film):
    entrants = contestants.threads(film, TASK)
    assert [entrant.name for entrant in entrants] == ["1 thread", "2 threads", "auto"]
    found = [entrant.read(0, 5) for entrant in entrants]
    for clips in found[1:]:
        np.testing.assert_array_equal(clips, found[0])


def test_copies_are_really_read(film):
    """A copy that is not found would be slow, not wrong."""
    for entrant in contestants.training(film, TASK)[-2:]:
        entrant.read(0, 0)
    names = {
        path.suffix
        for path in (
            path
            for kind in ("memmap", "reencode")
            for path in films.Store(film.root, kind, 32).folder.glob("??/*")
        )
    }
    assert names == {".frames", ".mp4"}


def test_what_is_not_installed_takes_no_part(film, monkeypatch):
    monkeypatch.setattr(contestants, "absent", lambda: {"torchcodec": "no", "decord": "no"})
    names = [entrant.name for entrant in contestants.training(film, TASK)]
    assert names == ["whole file, PyAV", "regkit", "regkit, reencode", "regkit, memmap"]


def test_who_fails_takes_no_part(film, monkeypatch):
    def broken(index: int, draw: int) -> np.ndarray:
        raise KeyError("no frame\n at all")

    entrants = [Contestant("theirs", broken), Contestant("sound", lambda index, draw: None)]
    monkeypatch.setattr(contestants, "others", lambda film, task: entrants)
    left_out = contestants.failing(film, TASK)
    assert list(left_out) == ["theirs"]
    assert left_out["theirs"].startswith("KeyError, ")
    names = [e.name for e in contestants.training(replace(film, left_out=left_out), TASK)]
    assert "theirs" not in names
    assert "sound" in names


def test_what_is_absent_is_said(monkeypatch):
    monkeypatch.setattr(contestants, "unavailable", lambda: "no FFmpeg")
    monkeypatch.setattr(contestants.importlib.util, "find_spec", lambda name: None)
    assert absent() == {"torchcodec": "no FFmpeg", "decord": "it is not installed"}
