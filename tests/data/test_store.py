import os
import sqlite3
import warnings
from multiprocessing import get_context

import numpy as np
import pytest

from regkit.data.cache import Cached, Store, read_memmap
from regkit.data.readers import Indexed, PyAV
from regkit.data.timeline import Index, Timeline, VideoError, read_timeline

SIZE = 30  # of 64 x 48 px: 40 x 30, even, as copies are


def same(one: Timeline, other: Timeline) -> bool:
    return np.array_equal(one.times_s, other.times_s) and len(one) == len(other)


@pytest.fixture
def index(tmp_path) -> Index:
    return Index(str(tmp_path / "cache" / "index.db"))


CODINGS = {
    "plain.mp4": {},
    "reordered.mp4": {"g": "7", "bf": "3", "b_strategy": "0"},
    "reordered.avi": {"g": "6", "bf": "2", "b_strategy": "0"},
    "vfr.mkv": {"times": np.cumsum(np.arange(24) % 5 + 1).tolist()},
    "odd ä.mp4": {"size": (66, 50)},
}


@pytest.mark.parametrize("name", CODINGS)
def test_mapped_frames_are_the_decoded_ones(write, tmp_path, name):
    path = str(write(name, **CODINGS[name]))
    store, timeline = Store(str(tmp_path / "cache"), "memmap", SIZE), read_timeline(path)
    size = store.add(path, timeline)
    reader = Cached(PyAV(), store)
    assert size == store.entry(path).stat().st_size
    assert same(reader.timeline(path), timeline)
    for indices in (np.arange(24), np.array([3, 20, 7, 7])):
        truth = PyAV().frames(path, indices, SIZE, timeline)
        np.testing.assert_array_equal(reader.frames(path, indices, SIZE, timeline), truth)


@pytest.mark.parametrize("name", CODINGS)
def test_coded_copies_keep_time_and_look(write, tmp_path, name):
    path = str(write(name, **CODINGS[name]))
    store, timeline = Store(str(tmp_path / "cache"), "reencode", SIZE), read_timeline(path)
    store.add(path, timeline)
    reader = Cached(PyAV(), store)
    copied = reader.timeline(path)
    np.testing.assert_allclose(copied.times_s, timeline.times_s, atol=2e-3)
    assert copied.keyframe.sum() >= 3
    assert min(copied.width_px, copied.height_px) == SIZE
    indices = np.array([3, 20, 7, 7])
    got = reader.frames(path, indices, SIZE, copied).astype(float)
    truth = PyAV().frames(path, np.arange(24), SIZE, timeline)
    # Colour noise is the hardest thing to code; the frames differ in brightness and place.
    distance = np.abs(got[:, None] - truth[None]).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(axis=1), indices)
    assert distance.min(axis=1).max() < 8


def test_a_changed_file_has_another_copy(write, tmp_path):
    path = str(write("a.mp4"))
    store = Store(str(tmp_path / "cache"), "memmap", SIZE)
    before = store.entry(path)
    write("a.mp4", num_frames=30)
    assert store.entry(path) != before


def test_no_copy_no_change(write, tmp_path):
    path = str(write("a.mp4"))
    reader = Cached(PyAV(), Store(str(tmp_path / "cache"), "memmap", SIZE))
    assert same(reader.timeline(path), read_timeline(path))
    with pytest.raises(VideoError, match=r"none\.mp4: FileNotFoundError"):
        reader.timeline("none.mp4")


def test_a_copy_that_cannot_be_finished_leaves_nothing(write, tmp_path):
    path = write("cut.mkv", num_frames=40, g="5")
    timeline = read_timeline(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    path.write_bytes(b"no video")
    for kind in ("memmap", "reencode"):
        store = Store(str(tmp_path / "cache"), kind, SIZE)
        with pytest.raises(VideoError):
            store.add(str(path), timeline)
        assert [file for file in store.folder.rglob("*") if file.is_file()] == []


def test_a_broken_copy_is_named_and_left_out(write, tmp_path):
    path = str(write("a.mp4"))
    store, timeline = Store(str(tmp_path / "cache"), "memmap", SIZE), read_timeline(path)
    store.add(path, timeline)
    whole = store.entry(path).read_bytes()
    truth = PyAV().frames(path, np.array([5]), SIZE, timeline)
    for broken in (b"", whole[:40], whole[: len(whole) // 2]):
        store.entry(path).write_bytes(broken)
        with pytest.warns(UserWarning, match="leaves out the copy .*delete it"):
            frames = Cached(PyAV(), store).frames(path, np.array([5]), SIZE, timeline)
        np.testing.assert_array_equal(frames, truth)


def test_mapping_reads_nothing_ahead(write, tmp_path):
    path = str(write("a.mp4"))
    store = Store(str(tmp_path / "cache"), "memmap", SIZE)
    store.add(path, read_timeline(path))
    _, frames = read_memmap(store.entry(path))
    assert isinstance(frames, np.memmap)
    assert not frames.flags.writeable


def test_index_answers_for_unchanged_files_only(write, index, monkeypatch):
    path = str(write("reordered.mp4", **CODINGS["reordered.mp4"]))
    reader, truth = Indexed(PyAV(), index), read_timeline(path)
    assert index.get(path) is None
    assert same(reader.timeline(path), truth)
    monkeypatch.setattr(PyAV, "timeline", lambda *_: pytest.fail("walked through again"))
    for again in (reader.timeline(path), Indexed(PyAV(), Index(index.file)).timeline(path)):
        assert same(again, truth)
        np.testing.assert_array_equal(again.pts, truth.pts)
        np.testing.assert_array_equal(again.keyframe, truth.keyframe)
        assert (again.exact, again.tick_s) == (truth.exact, truth.tick_s)
        assert (again.width_px, again.height_px) == (truth.width_px, truth.height_px)
    write("reordered.mp4", num_frames=30)
    assert index.get(path) is None


def test_any_file_name_is_kept(write, index):
    """Linux allows names that are not UTF-8."""
    plain = str(write("a.mp4"))
    odd = os.fsdecode(os.fsencode(plain)[:-5] + b"\xff.mp4")
    os.rename(plain, odd)
    timeline = Indexed(PyAV(), index).timeline(odd)
    assert same(index.get(odd), timeline)


def test_index_names_missing_files(index):
    with pytest.raises(VideoError, match=r"none\.mp4: FileNotFoundError, No such file"):
        Indexed(PyAV(), index).timeline("none.mp4")


def _put(index: Index, path: str, times: int) -> None:
    timeline = read_timeline(path)
    for _ in range(times):
        index.put(path, timeline)
        assert index.get(path) is not None
    assert index._owner == os.getpid()  # SQLite forbids a connection from before the fork


def test_index_is_shared_by_processes(write, index):
    paths = [str(write(f"{number}.mp4", num_frames=5 + number)) for number in range(3)]
    _put(index, paths[0], 1)  # the connection exists before the fork
    context = get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
        processes = [context.Process(target=_put, args=(index, p, 40)) for p in paths]
        for process in processes:
            process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for path in paths:
        assert same(index.get(path), read_timeline(path))


@pytest.mark.parametrize("damage", ["garbage", "folder", "sealed"])
def test_an_index_that_fails_costs_one_warning(write, tmp_path, damage):
    path = str(write("a.mp4"))
    file = tmp_path / "cache" / "index.db"
    file.parent.mkdir()
    if damage == "garbage":
        file.write_bytes(b"no database" * 1000)
    elif damage == "folder":
        file.mkdir()
    else:
        (tmp_path / "cache").rmdir()
        (tmp_path / "cache").touch()
    reader = Indexed(PyAV(), Index(str(file)))
    with pytest.warns(UserWarning, match="cannot use its index of videos"):
        first = reader.timeline(path)
    for timeline in (first, reader.timeline(path), reader.timeline(path)):  # a warning would raise
        assert same(timeline, read_timeline(path))


def test_index_survives_pickling_and_keeps_rows_small(write, index):
    import pickle

    path = str(write("long.mp4", num_frames=600, size=(16, 16)))
    index.put(path, read_timeline(path))
    assert same(pickle.loads(pickle.dumps(index)).get(path), read_timeline(path))
    with sqlite3.connect(index.file) as connection:
        ((size,),) = connection.execute("SELECT length(pts) + length(keyframe) FROM timeline_1")
    assert size < 300
