"""Copies of videos on disk, made for fast reading, and filled before training by many processes."""

import dataclasses
import hashlib
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from regkit.data.copies import (
    DamagedError,
    FrameFile,
    check_film,
    read_frames_of,
    write_film,
    write_frames,
)
from regkit.data.decode import Frames, Indices, pictures
from regkit.data.readers import Reader
from regkit.data.timeline import LostError, Source, Timeline, VideoError, fingerprint
from regkit.errors import InputError
from regkit.files import replacing

_FORMAT = 3  # raise when equal names come to mean other contents
_SUFFIX = {"memmap": ".frames", "reencode": ".mp4"}
KINDS = ("none", "reencode", "memmap", "auto")
_PROBES = 64  # videos that "auto" estimates the size from
_CODED = 0.1  # bytes a pixel of a re-encoded copy: 0.03 to 0.1 measured on the videos at hand
_FREE = 0.9  # of the disk's free space that may be taken
_AHEAD = 4  # tasks a process that are handed out before their turn
_LOOK_S = 1.0  # how often a worker looks whether its parent is there


@dataclass(frozen=True)
class Store:
    """Where the copies of one kind and size are.

    kind: "memmap" (RGB frames, bit for bit as they were decoded) or "reencode" (H.264).
    short_px: short side of the copies.
    """

    root: str
    kind: str
    short_px: int

    @property
    def folder(self) -> Path:
        """Name the folder of these copies."""
        return Path(self.root, f"{self.kind}_{self.short_px}px")

    def entry(self, path: str) -> Path:
        """Name the copy of a file as the file is now; a changed file has another.

        Raises: OSError when there is no such file.
        """
        text = f"{_FORMAT} {fingerprint(path)} {os.path.abspath(path)}"
        key = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / key[:2] / (key[2:] + _SUFFIX[self.kind])

    def add(self, path: str, timeline: Timeline) -> int:
        """Copy a file, and return the size of its copy in bytes.

        Nobody ever sees half of a copy: it is written beside its place and moved there.

        Raises: VideoError when the file cannot be read to its end.
        """
        entry = self.entry(path)
        entry.parent.mkdir(parents=True, exist_ok=True)
        counted = dataclasses.replace(timeline, exact=False)
        write = write_frames if self.kind == "memmap" else write_film
        with replacing(entry) as draft:
            for known in (timeline, counted):
                everything = np.arange(len(known))
                try:
                    write(draft, pictures(path, everything, self.short_px, known), timeline)
                    break
                except LostError:
                    continue
        return entry.stat().st_size


@dataclass(frozen=True)
class Cached(Reader):
    """A reader that takes the copy in a store where there is one.

    A damaged copy is made again; until then, as without a copy, the file itself is read.
    """

    inner: Reader
    store: Store

    def timeline(self, source: Source) -> Timeline:
        """Ask the copy, or the file."""
        copy = self._copy(source)
        if copy is None:
            return self.inner.timeline(source)
        return copy.timeline if isinstance(copy, FrameFile) else self.inner.timeline(copy)

    def frames(self, source: Source, indices: Indices, short_px: int, timeline: Timeline) -> Frames:
        """Read the copy, or the file."""
        copy = self._copy(source)
        if isinstance(copy, FrameFile):
            try:
                return copy.frames(indices)
            except DamagedError as error:
                self._mend(str(source), error)
        elif copy is not None:
            return self.inner.frames(copy, indices, short_px, timeline)
        if self.store.kind == "reencode":  # a copy that is gone by now had times of its own
            timeline = self.inner.timeline(source)
        return self.inner.frames(source, indices, short_px, timeline)

    def _copy(self, source: Source) -> FrameFile | str | None:
        """Return the mapped frames, or the path of a film, as far as there are any."""
        if not isinstance(source, str):
            return None
        try:
            entry = self.store.entry(source)
            if self.store.kind == "memmap":
                return read_frames_of(entry)
            check_film(entry)
            return str(entry)
        except DamagedError as error:
            self._mend(source, error)
        except FileNotFoundError:  # not copied, or thrown out; or no such file, which is said later
            pass
        except OSError as error:
            warnings.warn(f"regkit cannot read its copy of {source} ({error})", stacklevel=2)
        return None

    def _mend(self, source: str, damage: DamagedError) -> None:
        """Make a copy again, and say so."""
        read_frames_of.cache_clear()
        try:
            self.store.add(source, self.inner.timeline(source))
            done = "it was made again"
        except (VideoError, OSError) as error:
            done = f"it cannot be made again ({error}); delete it"
        warnings.warn(
            f"regkit found the copy {self.store.entry(source)} of {source} damaged ({damage}), and "
            f"reads the file; {done}. If that happens often, have the disk checked.",
            stacklevel=2,
        )


@dataclass(frozen=True)
class CacheBudget:
    """Where copies go and how much they may take together, with those of other data sets."""

    root: str
    limit_gib: float

    def free(self, wanted: int = 0, keep: Collection[Path] = ()) -> int:
        """Return the bytes that may still be taken, once copies not in `keep` made room.

        As many of them are thrown out as `wanted` bytes need, least recently used first.
        """
        copies = self._copies()
        folder = Path(self.root)
        while not folder.exists():
            folder = folder.parent
        on_disk = int(shutil.disk_usage(folder).free * _FREE)
        left = min(int(self.limit_gib * 2**30) - sum(size for *_, size in copies), on_disk)
        for _, path, size in copies if wanted else ():
            if left >= wanted:
                break
            if path not in keep:
                path.unlink(missing_ok=True)  # readers of it fall back on the file
                left += size
        return left

    def largest(self) -> int:
        """Return what `free` could come to if all copies were thrown out."""
        return self.free() + sum(size for *_, size in self._copies())

    def _copies(self) -> list[tuple[float, Path, int]]:
        """List what is there, least recently used first."""
        found = []
        for path in Path(self.root).glob("*_*px/??/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process throws out as well
                continue
            found.append((status.st_mtime, path, status.st_size))
        return sorted(found)


def choose(size: float, room: CacheBudget, memory: int) -> str:
    """Settle what "auto" means for frames of `size` bytes.

    None where each worker's memory holds them all; else memmap where they fit, else reencode where
    that fits, else none.
    """
    limit = room.largest()
    if size <= memory:
        return "none"
    if size <= limit:
        return "memmap"
    return "reencode" if size / 3 * _CODED <= limit else "none"


def estimate(paths: Sequence[str], short_px: int, reader: Reader) -> float:
    """Estimate the bytes of all frames of these files, scaled to a short side of `short_px`.

    From some of the files, always the same ones.
    """
    files = sorted(set(paths))
    sizes = []
    for path in files[:: -(-len(files) // _PROBES) or 1]:
        try:
            timeline = reader.timeline(path)
        except VideoError:  # named when it is copied
            continue
        short, long = sorted((timeline.width_px or 1, timeline.height_px or 1))
        sizes.append(3.0 * len(timeline) * short_px * round(short_px * long / short))
    return len(files) * sum(sizes) / max(1, len(sizes))


def fill(
    store: Store, paths: Iterable[str], reader: Reader, room: CacheBudget, num_workers: int
) -> None:
    """Copy what is not there yet. Runs side by side wait for each other, and go on from there.

    A file that cannot be copied, or for which there is no room, is read where it is.

    Raises: InputError when the folder cannot be written, or a process dies.
    """
    files = sorted(set(paths))
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        with _turn(store):
            for stale in store.folder.glob("??/*.tmp.*"):  # of a run that was killed
                stale.unlink(missing_ok=True)
            entries = {path: store.entry(path) for path in files if os.path.exists(path)}
            for entry in entries.values():
                if entry.exists():
                    os.utime(entry)  # used now
            missing = [path for path, entry in entries.items() if not entry.exists()]
            if missing:
                _copy(store, missing, reader, room, set(entries.values()), num_workers)
    except OSError as error:
        raise InputError(
            f"The cache of videos got cache_root={room.root!r}, where nothing can be kept "
            f"({error}). Give data.cache_root another folder, or data.cache=none."
        ) from error


def end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed, and then tells nobody."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _turn(store: Store) -> FileLock:
    lock = FileLock(store.folder / "filling.lock")
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        print(f"another run fills {store.folder}; waiting", file=sys.stderr, flush=True)
    return lock


def _copy(
    store: Store,
    missing: Sequence[str],
    reader: Reader,
    room: CacheBudget,
    keep: set[Path],
    num_workers: int,
) -> None:
    waiting, failed, full, largest = list(reversed(missing)), [], [], 0
    free = room.free()
    workers = max(1, num_workers)
    bar = tqdm(total=len(missing), desc=f"cache ({store.kind})", unit="video", file=sys.stderr)
    own = {"initializer": end_with, "initargs": (os.getpid(),)}
    with bar, ProcessPoolExecutor(workers, get_context("fork"), **own) as pool:
        running: dict[Future[int], str] = {}
        while running or waiting:
            # The first copy alone tells how large they are.
            most = workers * _AHEAD if largest else 1
            while waiting and len(running) < most and free >= largest * (len(running) + 1):
                path = waiting.pop()
                running[pool.submit(_add, store, path, reader)] = path
            if not running:
                free = room.free(largest, keep)
                if free < largest:
                    break
                continue
            done = next(as_completed(running))
            path = running.pop(done)
            try:
                size = done.result()
            except VideoError as error:
                failed.append(str(error))
                size = 0
            except BrokenProcessPool as error:
                raise InputError(
                    f"A process died while it copied one of {[path, *running.values()]} into the "
                    "cache. Look at these files, or at the memory, or set data.cache=none."
                ) from error
            free, largest = free - size, max(size, largest)
            if free < 0 and (free := room.free(1, keep)) < 0:  # larger than those before
                store.entry(path).unlink(missing_ok=True)
                free += size
                full.append(path)
            bar.update()
    _report(failed, len(waiting) + len(full), len(missing), room)


def _report(failed: Sequence[str], left: int, total: int, room: CacheBudget) -> None:
    if failed:
        warnings.warn(f"not in the cache: {'; '.join(failed)}", stacklevel=2)
    if left:
        warnings.warn(
            f"the cache is full at {room.limit_gib:g} GiB (or the disk is): {left} of {total} "
            "videos are read from their files. Raise data.cache_gib, or take data.cache=reencode.",
            stacklevel=2,
        )


def _add(store: Store, path: str, reader: Reader) -> int:
    timeline: Timeline = reader.timeline(path)
    return store.add(path, timeline)
