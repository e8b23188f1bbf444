import os
import sqlite3
import warnings
from multiprocessing import get_context

import numpy as np
import pytest

from regkit.data.cache import Cached, Store
from regkit.data.copies import read_frames_of
from regkit.data.readers import Indexed, PyAV
from regkit.data.timeline import _FORMAT, Index, Timeline, VideoError, read_timeline

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


KINDS = ["memmap", "reencode"]
DAMAGES = ["nothing", "40 bytes", "half", "zeroed", "first bit", "any bit", "last bit"]


def damaged(whole: bytes, damage: str) -> bytes:
    content = bytearray(whole)
    cut = {"nothing": 0, "40 bytes": 40, "half": len(whole) // 2}
    if damage in cut:
        return whole[: cut[damage]]
    if damage == "zeroed":  # as a file that was never written back
        return bytes(len(whole))
    place = {"first bit": 0, "any bit": len(whole) // 2, "last bit": len(whole) - 1}[damage]
    content[place] ^= 1
    return bytes(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_made_again(write, tmp_path, kind, damage):
    """And what is read is the file, in the middle of a run as well as at its begin."""
    path, everything = str(write("vfr.mkv", **CODINGS["vfr.mkv"])), np.arange(24)
    store, timeline = Store(str(tmp_path / "cache"), kind, SIZE), read_timeline(path)
    truth = PyAV().frames(path, everything, SIZE, timeline)
    store.add(path, timeline)
    reader = Cached(PyAV(), store)
    sound, known = store.entry(path).read_bytes(), reader.timeline(path)
    copied = reader.frames(path, everything, SIZE, known)
    read_frames_of.cache_clear()
    store.entry(path).write_bytes(damaged(sound, damage))
    with pytest.warns(UserWarning, match=r"found the copy .* damaged .* it was made again") as said:
        got = reader.frames(path, everything, SIZE, known)
    assert len(said) == 1
    np.testing.assert_array_equal(got, truth)
    assert store.entry(path).read_bytes() == sound
    again = reader.frames(path, everything, SIZE, reader.timeline(path))  # warns no more
    np.testing.assert_array_equal(again, copied)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_that_is_gone_takes_no_times_with_it(write, tmp_path, kind):
    """It is thrown out while a worker remembers its timeline; frames are those of the file."""
    path = str(write("late.mp4", times=list(range(1, 25)), g="6"))
    store, timeline = Store(str(tmp_path / "cache"), kind, SIZE), read_timeline(path)
    store.add(path, timeline)
    reader = Cached(PyAV(), store)
    known = reader.timeline(path)
    store.entry(path).unlink()
    read_frames_of.cache_clear()
    truth = PyAV().frames(path, np.array([3, 11]), SIZE, timeline)
    np.testing.assert_array_equal(reader.frames(path, np.array([3, 11]), SIZE, known), truth)


def test_a_damaged_copy_that_cannot_be_made_again(write, tmp_path, monkeypatch):
    path = str(write("a.mp4"))
    store, timeline = Store(str(tmp_path / "cache"), "memmap", SIZE), read_timeline(path)
    store.add(path, timeline)
    store.entry(path).write_bytes(b"x")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "add", full)
    with pytest.warns(UserWarning, match=r"cannot be made again .*No space left.*delete it"):
        frames = Cached(PyAV(), store).frames(path, np.array([5]), SIZE, timeline)
    np.testing.assert_array_equal(frames, PyAV().frames(path, np.array([5]), SIZE, timeline))


def test_mapping_reads_nothing_ahead(write, tmp_path):
    path = str(write("a.mp4"))
    store = Store(str(tmp_path / "cache"), "memmap", SIZE)
    store.add(path, read_timeline(path))
    rows = read_frames_of(store.entry(path)).rows
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable


def test_a_damaged_row_of_the_index_only_costs_time(write, index):
    path = str(write("a.mp4"))
    Indexed(PyAV(), index).timeline(path)
    for damage in ("x'00'", "(SELECT keyframe)"):
        with sqlite3.connect(index.file) as connection:
            connection.execute(f"UPDATE timeline_{_FORMAT} SET pts = {damage}")
        assert index.get(path) is None
        assert same(Indexed(PyAV(), index).timeline(path), read_timeline(path))


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
        ((size,),) = connection.execute(
            f"SELECT length(pts) + length(keyframe) FROM timeline_{_FORMAT}"
        )
    assert size < 300
