"""Fill a ring with the frames of a stream."""

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from regkit.data.stream import Feed
from regkit.data.timeline import VideoError
from regkit.errors import InputError
from regkit.inference.predict.frame_buffer import BufferedFrame, FrameBuffer


class Reader(threading.Thread):
    """Fill a ring from a feed, in a thread of its own.

    Attributes:
        num_frames: that were decoded.
        num_broken: packets that could not be, and were passed over.
    """

    def __init__(self, feed: Feed, ring: FrameBuffer, short_px: int, threads: int = 1):
        super().__init__(name="frames of a stream", daemon=True)  # a silent pipe holds it for ever
        self.feed, self.ring, self.short_px, self.threads = feed, ring, short_px, threads
        self.num_frames = self.num_broken = 0

    def run(self) -> None:
        """Read until the stream ends or nobody listens."""
        try:
            self._read()
        except VideoError as error:
            self.ring.end(error)
        except Exception as error:  # a fault of this package: whoever waits for frames must know
            self.ring.end(error)
            raise
        else:
            self.ring.end()

    def _read(self) -> None:
        for time_s, picture, decode_ms in self.feed.frames(
            self.short_px, self.threads, self._pass_over
        ):
            self.num_frames += 1
            if not self.ring.put(BufferedFrame(time_s, picture, time.perf_counter(), decode_ms)):
                return

    def _pass_over(self) -> None:
        self.num_broken += 1


def feed_of(video: str, format: str | None, options: Any, timeout_s: float) -> Feed:
    """Check what was given, and make a feed.

    Raises: InputError.
    """
    if not isinstance(options, Mapping):
        raise InputError(
            f"predict got options={options}; give what FFmpeg knows, options={{framerate:30}}."
        )
    if not timeout_s > 0:
        raise InputError(f"predict got timeout_s={timeout_s:g}; give seconds above 0.")
    if video == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise InputError("predict got video=-, but nothing is piped in. cat film.ts | ...")
    plain = {str(key): str(value) for key, value in options.items()}
    return Feed(video, format or None, plain, timeout_s)
