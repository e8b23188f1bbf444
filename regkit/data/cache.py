"""Fill a store before training: side by side, within bounds, by many processes."""

import os
import shutil
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from regkit.data.reader import Reader
from regkit.data.store import Store
from regkit.data.timeline import Timeline, VideoError
from regkit.errors import InputError

KINDS = ("none", "reencode", "memmap", "auto")
_PROBES = 64  # videos that "auto" estimates the size from
_CODED = 0.1  # bytes a pixel of a re-encoded copy: 0.03 to 0.1 measured on the videos at hand
_FREE = 0.9  # of the disk's free space that may be taken
_AHEAD = 4  # tasks a process that are handed out before their turn


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
    with bar, ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
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
                raise _death([path, *running.values()]) from error
            free, largest = free - size, max(size, largest)
            if free < 0 and (free := room.free(1, keep)) < 0:  # larger than those before
                store.entry(path).unlink(missing_ok=True)
                free += size
                full.append(path)
            bar.update()
    _report(failed, len(waiting) + len(full), len(missing), room)


def _death(held: Sequence[str]) -> InputError:
    return InputError(
        f"A process died while it copied one of {held} into the cache. Look at these files, or "
        "at the memory, or set data.cache=none."
    )


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
