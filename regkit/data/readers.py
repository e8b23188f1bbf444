"""Ways to read a file that go one into another: decoder, index, cache."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from regkit.data.index import Index
from regkit.data.reader import PyAV, Reader
from regkit.data.store import Store, read_memmap
from regkit.data.timeline import Source, Timeline, VideoError


@dataclass(frozen=True)
class Indexed(Reader):
    """A reader that walks through each file once, and remembers its timeline on disk."""

    inner: Reader
    index: Index

    def timeline(self, source: Source) -> Timeline:
        """Look it up, or find and keep it."""
        if not isinstance(source, str):
            return self.inner.timeline(source)
        try:
            timeline = self.index.get(source)
            if timeline is None:
                timeline = self.inner.timeline(source)
                self.index.put(source, timeline)
        except OSError as error:  # no such file
            raise VideoError(source, f"{type(error).__name__}, {error.strerror}") from error
        return timeline

    def frames(
        self,
        source: Source,
        indices: Int64[np.ndarray, " frames"],
        short_px: int,
        timeline: Timeline,
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Decode them."""
        return self.inner.frames(source, indices, short_px, timeline)


@dataclass(frozen=True)
class Cached(Reader):
    """A reader that takes the copy in a store where there is one."""

    inner: Reader
    store: Store

    def timeline(self, source: Source) -> Timeline:
        """Ask the copy, or the file."""
        copy = self._copy(source)
        if isinstance(copy, tuple):
            return copy[0]
        return self.inner.timeline(source if copy is None else copy)

    def frames(
        self,
        source: Source,
        indices: Int64[np.ndarray, " frames"],
        short_px: int,
        timeline: Timeline,
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Read the copy, or the file."""
        copy = self._copy(source)
        if isinstance(copy, tuple):
            return copy[1][np.minimum(indices, len(copy[1]) - 1)]
        return self.inner.frames(source if copy is None else copy, indices, short_px, timeline)

    def _copy(
        self, source: Source
    ) -> tuple[Timeline, UInt8[np.ndarray, "frames height width 3"]] | str | None:
        """Return a mapped copy, the path of a coded one, or None where there is none."""
        if not isinstance(source, str):
            return None
        try:
            entry = self.store.entry(source)
        except OSError:
            return None  # no such file; whoever reads it says so
        if self.store.kind != "memmap":
            return str(entry) if entry.is_file() else None
        try:
            return read_memmap(entry)
        except FileNotFoundError:  # not copied, or thrown out to make room
            return None
        except (OSError, ValueError, EOFError) as error:
            warnings.warn(
                f"regkit leaves out the copy {entry} of {source} ({error}); delete it, and it "
                "will be made again.",
                stacklevel=2,
            )
            return None


def _torchcodec(threads: int) -> Reader:
    from regkit.data.torchcodec import TorchCodec  # only where it is asked for

    return TorchCodec(threads)


# By the value of data.reader; made from a number of threads.
READERS: dict[str, Callable[[int], Reader]] = {"pyav": PyAV, "torchcodec": _torchcodec}
