"""Remember the timelines of files, so that each file is walked through once and not once a run."""

import os
import sqlite3
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regkit.data.timeline import Timeline

_FORMAT = 1  # raise when rows come to mean something else
_TABLE = (
    f"CREATE TABLE IF NOT EXISTS timeline_{_FORMAT} (path TEXT PRIMARY KEY, fingerprint TEXT, "
    "pts BLOB, keyframe BLOB, exact INTEGER, tick_s REAL, width_px INTEGER, height_px INTEGER)"
)
_PATIENCE_S = 30.0  # for another process that writes


def fingerprint(path: str) -> str:
    """Tell a file from what it was before: size and time of the last change."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def _key(path: str) -> str:
    """Name a file as SQLite can keep it, whatever bytes its name holds."""
    return os.path.abspath(path).encode(errors="backslashreplace").decode()


@dataclass
class Index:
    """A table of timelines in one SQLite file, shared by processes that run side by side.

    It only saves time: where it cannot be read or written, one warning is given, and files are
    walked through as if there were none.
    """

    file: str
    _connection: sqlite3.Connection | None = field(init=False, default=None, repr=False)
    _owner: int = field(init=False, default=0, repr=False)
    _broken: bool = field(init=False, default=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None, "_owner": 0}

    def get(self, path: str) -> Timeline | None:
        """Return the timeline of a file that has not changed since, or None."""
        found = self._run(
            "SELECT pts, keyframe, exact, tick_s, width_px, height_px "
            f"FROM timeline_{_FORMAT} WHERE path = ? AND fingerprint = ?",
            (_key(path), fingerprint(path)),
        )
        if not found:
            return None
        pts, keyframe, exact, tick_s, width_px, height_px = found[0]
        return Timeline(
            np.cumsum(np.frombuffer(zlib.decompress(pts), dtype=np.int64)),
            np.frombuffer(zlib.decompress(keyframe), dtype=bool),
            bool(exact),
            tick_s,
            width_px,
            height_px,
        )

    def put(self, path: str, timeline: Timeline) -> None:
        """Remember the timeline of a file as it is now."""
        steps = np.diff(timeline.pts, prepend=np.int64(0))  # nearly all equal: 300 in 30 bytes
        self._run(
            f"INSERT OR REPLACE INTO timeline_{_FORMAT} VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _key(path),
                fingerprint(path),
                zlib.compress(steps.tobytes()),
                zlib.compress(timeline.keyframe.tobytes()),
                int(timeline.exact),
                timeline.tick_s,
                timeline.width_px,
                timeline.height_px,
            ),
        )

    def _run(self, order: str, values: tuple[Any, ...]) -> list[Any]:
        if self._broken:
            return []
        try:
            with self._connected() as connection:
                return connection.execute(order, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            warnings.warn(
                f"regkit cannot use its index of videos, {self.file} ({error}); files are walked "
                "through anew. Remove the file, or set data.cache_root to a folder of your own.",
                stacklevel=2,
            )
            return []

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # none survives a fork
            Path(self.file).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=_PATIENCE_S)
            self._connection.execute("PRAGMA synchronous = OFF")  # it can be made again
            self._connection.execute(_TABLE)
            self._owner = os.getpid()
        return self._connection
