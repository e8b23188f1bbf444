"""Filling a store: bounds, order of eviction, damage, side by side."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from regkit.data import cache
from regkit.data.cache import CacheBudget, Store, choose, estimate, fill
from regkit.data.readers import PyAV
from regkit.errors import InputError

SIZE = 32
GIB = 2**30


@pytest.fixture
def room(tmp_path) -> CacheBudget:
    return CacheBudget(str(tmp_path / "cache"), 1.0)


@pytest.fixture
def store(room) -> Store:
    return Store(room.root, "memmap", SIZE)


@pytest.fixture
def paths(write) -> list[str]:
    return [str(write(f"{n}.mp4", num_frames=12)) for n in range(4)]


def copies(store: Store) -> set[Path]:
    return {path for path in store.folder.glob("??/*")}


def test_fills_once(store, room, paths, capfd):
    fill(store, paths, PyAV(), room, 2)
    assert copies(store) == {store.entry(path) for path in paths}
    assert "4/4" in capfd.readouterr().err
    made = {path: path.stat().st_ino for path in copies(store)}
    fill(store, [*paths, paths[0]], PyAV(), room, 2)
    assert {path: path.stat().st_ino for path in copies(store)} == made
    assert capfd.readouterr().err == ""


def test_bad_files_are_named_and_left(store, room, paths):
    Path(paths[1]).write_bytes(b"no video")
    with pytest.warns(UserWarning, match=r"not in the cache: .*1\.mp4: InvalidDataError"):
        fill(store, [*paths, "gone.mp4"], PyAV(), room, 2)
    assert len(copies(store)) == 3


def test_keeps_its_bound(store, room, paths):
    fill(store, paths[:1], PyAV(), room, 1)
    (one,) = (path.stat().st_size for path in copies(store))
    tight = CacheBudget(room.root, 2.5 * one / GIB)
    with pytest.warns(UserWarning, match=r"cache is full .* 2 of 3 videos are read from"):
        fill(store, paths, PyAV(), tight, 2)
    assert sum(path.stat().st_size for path in copies(store)) <= 2.5 * one


def test_a_copy_larger_than_those_before_keeps_the_bound(store, room, paths, write):
    fill(store, paths[:1], PyAV(), room, 1)
    (one,) = (path.stat().st_size for path in copies(store))
    long = str(write("9.mp4", num_frames=60))
    with pytest.warns(UserWarning, match=r"cache is full .* 1 of 2 videos are read from"):
        fill(store, [*paths[:2], long], PyAV(), CacheBudget(room.root, 4.5 * one / GIB), 2)
    assert copies(store) == {store.entry(path) for path in paths[:2]}


def test_makes_room_by_what_was_used_longest_ago(store, room, paths):
    for age, path in enumerate(paths[:3]):
        fill(store, [path], PyAV(), room, 1)
        os.utime(store.entry(path), (1000 + age, 1000 + age))
    one = store.entry(paths[0]).stat().st_size
    tight = CacheBudget(room.root, 3.5 * one / GIB)
    assert tight.free(int(0.4 * one)) >= 0.4 * one
    assert len(copies(store)) == 3
    assert tight.free(one) >= one
    assert copies(store) == {store.entry(path) for path in paths[1:3]}
    assert tight.free(2 * one, {store.entry(paths[1])}) >= 2 * one
    assert copies(store) == {store.entry(paths[1])}


def test_using_makes_young(store, room, paths):
    fill(store, paths[:1], PyAV(), room, 1)
    os.utime(store.entry(paths[0]), (1000, 1000))
    fill(store, paths[:1], PyAV(), room, 1)
    assert time.time() - store.entry(paths[0]).stat().st_mtime < 60


def test_what_a_killed_run_left_is_cleared(store, room, paths):
    stale = store.folder / "ab" / "cdef.99.tmp.frames"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    fill(store, paths[:1], PyAV(), room, 1)
    assert not stale.exists()


def test_a_second_run_waits_and_finds_all_done(store, room, paths, capfd):
    store.folder.mkdir(parents=True)
    turn = FileLock(store.folder / "filling.lock", thread_local=False)
    turn.acquire()
    other = threading.Thread(target=fill, args=(store, paths[:1], PyAV(), room, 1))
    other.start()
    deadline = time.time() + 20
    err = ""
    while "another run fills" not in err and time.time() < deadline:
        time.sleep(0.02)
        err += capfd.readouterr().err
    assert "another run fills" in err
    assert copies(store) == set()
    turn.release()
    other.join(30)
    assert len(copies(store)) == 1


class Deadly(PyAV):
    def timeline(self, source):
        os.kill(os.getpid(), signal.SIGKILL)
        return super().timeline(source)


def test_a_process_that_dies_is_reported_with_its_files(store, room, paths):
    with pytest.raises(InputError, match=r"process died while it copied one of .*0\.mp4"):
        fill(store, paths[:1], Deadly(), room, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_folder_that_cannot_be_written(tmp_path, paths):
    (tmp_path / "file").touch()
    root = str(tmp_path / "file" / "cache")
    with pytest.raises(InputError, match=r"cache_root=.*nothing can be kept"):
        fill(Store(root, "memmap", SIZE), paths, PyAV(), CacheBudget(str(tmp_path), 1.0), 1)


def test_estimate_is_the_size_of_the_copies(store, room, paths):
    fill(store, paths, PyAV(), room, 1)
    size = sum(path.stat().st_size for path in copies(store))
    assert estimate(paths, SIZE, PyAV()) == pytest.approx(size, rel=0.02)
    Path(paths[1]).write_bytes(b"no video")
    assert estimate(paths, SIZE, PyAV()) == pytest.approx(size, rel=0.02)


def test_estimate_looks_at_some_of_many(paths, monkeypatch):
    many = [f"{number:04d}" for number in range(1000)]
    asked = []
    truth = PyAV().timeline(paths[0])

    def timeline(self, source):
        asked.append(source)
        return truth

    monkeypatch.setattr(PyAV, "timeline", timeline)
    assert estimate(many, SIZE, PyAV()) == 1000 * 12 * 3 * SIZE * 43
    assert 32 <= len(asked) <= cache._PROBES


def test_auto_takes_the_fastest_that_fits(tmp_path):
    room = CacheBudget(str(tmp_path), 1.0)
    assert choose(100.0 * 2**20, room, 256 * 2**20) == "none"  # memory holds it
    assert choose(0.9 * GIB, room, 256 * 2**20) == "memmap"
    assert choose(20.0 * GIB, room, 256 * 2**20) == "reencode"
    assert choose(40.0 * GIB, room, 256 * 2**20) == "none"


def test_frames_of_a_copy_thrown_out_come_from_the_file(store, room, paths):
    from regkit.data.cache import Cached

    fill(store, paths[:1], PyAV(), room, 1)
    reader = Cached(PyAV(), store)
    timeline = reader.timeline(paths[0])
    mapped = reader.frames(paths[0], np.array([4]), SIZE, timeline)
    room.free(2 * GIB)
    assert copies(store) == set()
    np.testing.assert_array_equal(reader.frames(paths[0], np.array([4]), SIZE, timeline), mapped)


def _orphaned(sign: Path) -> None:
    """Start a worker that works long, say who it is, and be killed."""
    with ProcessPoolExecutor(
        1, get_context("fork"), initializer=cache.end_with, initargs=(os.getpid(),)
    ) as pool:
        sign.write_text(str(pool.submit(os.getpid).result()))
        pool.submit(time.sleep, 300)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_whose_parent_was_killed_ends(tmp_path):
    parent = get_context("fork").Process(target=_orphaned, args=(tmp_path / "worker",))
    parent.start()
    parent.join(60)
    assert parent.exitcode == -signal.SIGKILL
    worker = Path("/proc", (tmp_path / "worker").read_text())
    deadline = time.time() + 30
    while worker.exists() and time.time() < deadline:
        time.sleep(0.1)
        state = worker / "stat"
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # dead; nobody here waits for it
    assert not worker.exists()
