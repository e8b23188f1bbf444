"""What reads files: the interface, and the way by PyAV."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from regkit.data import decode
from regkit.data.timeline import Source, Timeline, read_timeline


class Reader(ABC):
    """Read the frames of a file; both raise VideoError where that is impossible."""

    @abstractmethod
    def timeline(self, source: Source) -> Timeline:
        """List the frames."""

    @abstractmethod
    def frames(
        self,
        source: Source,
        indices: Int64[np.ndarray, " frames"],
        short_px: int,
        timeline: Timeline,
    ) -> UInt8[np.ndarray, "frames height width 3"]:
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

    def frames(
        self,
        source: Source,
        indices: Int64[np.ndarray, " frames"],
        short_px: int,
        timeline: Timeline,
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Decode them."""
        return decode.read_frames(source, indices, short_px, timeline, self.threads)
