"""Ways to read a file: by PyAV, by torchcodec, or by either with timelines that are remembered."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from regkit.data.decode import LONGEST, Frames, Indices, Orientation, orientation, read_frames
from regkit.data.timeline import (
    Index,
    Source,
    Timeline,
    VideoError,
    fingerprint,
    opened,
    read_timeline,
)
from regkit.errors import InputError


class Reader(ABC):
    """Read the frames of a file; both raise VideoError where that is impossible."""

    @abstractmethod
    def timeline(self, source: Source) -> Timeline:
        """List the frames."""

    @abstractmethod
    def frames(self, source: Source, indices: Indices, short_px: int, timeline: Timeline) -> Frames:
        """Return the frames at `indices` as RGB, upright, the short side scaled."""


@dataclass(frozen=True)
class PyAV(Reader):
    """FFmpeg by PyAV: every codec, only the frames that are needed.

    threads: of the decoder; 0 lets it choose.
    """

    threads: int = 1

    def timeline(self, source: Source) -> Timeline:
        """Walk through the packets."""
        return read_timeline(source)

    def frames(self, source: Source, indices: Indices, short_px: int, timeline: Timeline) -> Frames:
        """Decode them."""
        return read_frames(source, indices, short_px, timeline, self.threads)


@dataclass(frozen=True)
class TorchCodec(Reader):
    """Frames by torchcodec, scaled by its own Resize; by PyAV where torchcodec gives others.

    It decodes by the FFmpeg that is installed in the system. Unscaled, frames are those of PyAV to
    the bit where both FFmpegs decode alike. Scaled, they differ by 1 to 5 grey levels in the mean
    on the files tried: the scalers weigh pixels, and above all the coarser colours, differently.

    threads: of the decoder; 0 lets it choose.
    Raises: InputError when torchcodec, or the FFmpeg that it needs, is missing.
    """

    threads: int = 1

    def __post_init__(self):
        reason = unavailable()
        if reason is not None:
            raise InputError(
                f"data.reader=torchcodec cannot be used: {reason}. pip install "
                "'regkit[torchcodec]', and FFmpeg with its shared libraries: apt-get install "
                "ffmpeg, or conda install ffmpeg. data.reader=pyav needs neither."
            )

    def timeline(self, source: Source) -> Timeline:
        """Walk through the packets, as PyAV does."""
        return read_timeline(source)

    def frames(self, source: Source, indices: Indices, short_px: int, timeline: Timeline) -> Frames:
        """Decode them; where torchcodec numbers or times them otherwise, by PyAV."""
        by_pyav = PyAV(self.threads)
        if not timeline.exact:
            return by_pyav.frames(source, indices, short_px, timeline)
        wanted, back = np.unique(indices, return_inverse=True)
        try:
            return self._read(source, wanted, short_px, timeline)[back]
        except (
            RuntimeError,
            ValueError,
            IndexError,
            OSError,
        ) as error:  # it has no type of its own
            frames = by_pyav.frames(source, indices, short_px, timeline)
            # Without the file's name, so that a set of such files gives one warning.
            warnings.warn(f"PyAV reads what torchcodec cannot: {_short(error)}", stacklevel=2)
            return frames

    def _read(self, source: Source, wanted: Indices, short_px: int, timeline: Timeline) -> Frames:
        """Decode by torchcodec alone.

        Raises: ValueError where its frames are not those of the timeline; what torchcodec raises.
        """
        named = isinstance(source, str | os.PathLike)
        place = str(source)
        stream, shown = _shown_at(place, fingerprint(place)) if named else _shown(source)
        if shown.mirrored:
            raise ValueError("it would not mirror what is shown mirrored")
        height, width = timeline.height_px, timeline.width_px
        sides = (width, height) if shown.transposed else (height, width)
        found = self._opened(source, stream, sides, short_px)
        if len(found) != len(timeline) or (found.metadata.height, found.metadata.width) != sides:
            raise ValueError("it sees another number of frames, or another size")
        batch = found.get_frames_at(wanted.tolist())
        times_s = timeline.pts[wanted] * timeline.tick_s
        if np.abs(batch.pts_seconds.numpy() - times_s).max() > timeline.tick_s / 2:
            raise ValueError("it gives frames other times")
        return batch.data.numpy()

    def _opened(self, source: Source, stream: int, sides: tuple[int, int], short_px: int) -> Any:
        """Open a stream; it raises where that is no video."""
        decoders, transforms = map(import_module, ("torchcodec.decoders", "torchcodec.transforms"))
        short, long = sorted(sides)
        if not 0 < long <= LONGEST * short:
            raise ValueError("it has no known size, or is no picture but a strip")
        if isinstance(source, str | os.PathLike):
            source = os.path.abspath(source)  # FFmpeg would take "a:b.mp4" for a protocol
        else:
            source.seek(0)
        scaled = [max(short_px, round(side * short_px / short)) for side in sides]
        return decoders.VideoDecoder(
            source,
            stream_index=stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=self.threads,
            device="cpu",
            seek_mode="exact",
            transforms=[transforms.Resize(scaled)],
        )


def _shown(source: Source) -> tuple[int, Orientation]:
    """Return the number of the stream that is shown, and which way up; torchcodec tells neither."""
    with opened(source) as (container, stream):
        for frame in container.decode(stream):
            return stream.index, orientation(frame)
    raise VideoError(source, "no frame could be decoded")


@lru_cache(4096)
def _shown_at(path: str, _: str) -> tuple[int, Orientation]:
    """Remember it of a file as it is now."""
    return _shown(path)


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

    def frames(self, source: Source, indices: Indices, short_px: int, timeline: Timeline) -> Frames:
        """Decode them."""
        return self.inner.frames(source, indices, short_px, timeline)


# By the value of data.reader; made from a number of threads.
READERS: dict[str, Callable[[int], Reader]] = {"pyav": PyAV, "torchcodec": TorchCodec}


def unavailable() -> str | None:
    """Say why torchcodec cannot decode here; None where it can."""
    try:
        torchcodec = import_module("torchcodec")
    except (ImportError, RuntimeError, OSError) as error:
        return _short(error)
    # None since it is loaded late; before, the import failed
    if torchcodec.ffmpeg_major_version is None:
        return "it finds no FFmpeg libraries of the versions that it knows"
    return None


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}, {lines[0] if lines else ''}"
