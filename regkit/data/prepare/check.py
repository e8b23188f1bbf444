"""Look at one video file from its first byte to its last frame."""

import dataclasses
import hashlib
import os
from dataclasses import dataclass

import numpy as np
from av.error import FFmpegError
from jaxtyping import Float64

from regkit.data.clip_spec import Sampling
from regkit.data.decode import orientation
from regkit.data.readers import Reader
from regkit.data.timeline import ROUNDING_S, Timeline, VideoError, opened

_PROBE_PX = 16  # short side of the one frame that is read as training reads it
_VARIES = 0.1  # steps between frames that differ by more of their median than this do vary
_HABIT = 2, 0.1  # frames, and share, that encoders announce and do not give in files that are whole
_LATE_S = 0.1  # parts may end so much after the file, and a frame: annotations are rounded

Part = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file; numbers are 0 where they are not.

    reason: why it cannot be read, or cannot be to its end; "" where it can.
    fatal: its process died or was given up; it would end training too.
    width_px, height_px: as the frames are shown, after rotation.
    announced: frames, by the header or by the packets, whichever promise more.
    decoded: frames; None where they were not counted.
    in_part: frames from which a clip of each part is taken, at the rate of the sampling.
    late: the parts, by place, that begin or end after the file.
    """

    path: str
    reason: str = ""
    fatal: bool = False
    num_bytes: int = 0
    sha256: str = ""
    codec: str = ""
    width_px: int = 0
    height_px: int = 0
    announced: int = 0
    decoded: int | None = None
    rate_fps: float = 0.0
    variable: bool = False
    duration_s: float = 0.0
    in_part: tuple[int, ...] = ()
    late: tuple[int, ...] = ()

    @property
    def cut_short(self) -> bool:
        """Tell whether far fewer frames come than are announced."""
        few, share = _HABIT
        lost = 0 if self.decoded is None else self.announced - self.decoded
        return not self.reason and lost > max(few, share * self.announced)


@dataclass(frozen=True)
class Checker:
    """Check files as the reader and the sampling of a data set will meet them.

    quick: decode the first frame only.
    """

    reader: Reader
    sampling: Sampling
    quick: bool = False

    def __call__(self, task: tuple[str, tuple[Part, ...]]) -> Facts:
        """Look at a file, given its path and the parts of it that are videos. Never raises."""
        path, parts = task
        facts = Facts(path)
        try:
            facts = dataclasses.replace(facts, num_bytes=os.stat(path).st_size)
            timeline = self.reader.timeline(path)
            self.reader.frames(path, np.zeros(1, dtype=np.int64), _PROBE_PX, timeline)
            facts = dataclasses.replace(facts, sha256=_digest(path))
            facts = self._walked(facts, timeline)
            return self._parted(facts, timeline, parts)
        except VideoError as error:
            return dataclasses.replace(facts, reason=error.reason)
        except Exception as error:  # whatever a file does, the report names it
            return dataclasses.replace(facts, reason=f"{type(error).__name__}, {error}")

    def _walked(self, facts: Facts, timeline: Timeline) -> Facts:
        with opened(facts.path) as (container, stream):
            frames, count, reason = container.decode(stream), 0, ""
            first = next(frames, None)
            if first is None:
                raise VideoError(facts.path, "no frame could be decoded")
            width, height = orientation(first).size(first)
            count += 1
            try:
                while not self.quick and next(frames, None) is not None:
                    count += 1
            except FFmpegError as error:
                reason = f"{type(error).__name__} after {count} frames, {error.strerror}"
            promised = stream.frames
            codec = stream.codec_context.codec.canonical_name
            fps = float(stream.average_rate or stream.guessed_rate or 0)
        if promised > len(timeline):
            promised -= _hidden(facts.path)
        times = timeline.times_s
        rate = float((len(times) - 1) / times[-1]) if times[-1] > 0 else fps
        return dataclasses.replace(
            facts,
            reason=reason,
            codec=codec,
            width_px=width,
            height_px=height,
            announced=max(promised, len(timeline)),
            decoded=None if self.quick else count,
            rate_fps=rate,
            variable=_varies(timeline),
            duration_s=_duration(times[: None if self.quick else count], rate),
        )

    def _parted(self, facts: Facts, timeline: Timeline, parts: tuple[Part, ...]) -> Facts:
        times = timeline.times_s[: facts.decoded]
        frame_s = 1 / facts.rate_fps if facts.rate_fps else 0.0
        latest_s = facts.duration_s + frame_s + _LATE_S
        counts, late = [], []
        for place, (start_s, end_s) in enumerate(parts):
            end = np.inf if end_s is None else end_s
            within = times[(times >= start_s - ROUNDING_S) & (times < end - ROUNDING_S)]
            counts.append(self._available(within, facts.rate_fps))
            if not len(within) or (end_s is not None and end_s > latest_s):
                late.append(place)
        return dataclasses.replace(facts, in_part=tuple(counts), late=tuple(late))

    def _available(self, times: Float64[np.ndarray, " frames"], rate: float) -> int:
        fps = self.sampling.fps
        if fps is None or len(times) < 2:
            return len(times)
        return max(1, round(_duration(times, rate) * fps))


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hidden(path: str) -> int:
    """Count the frames that a file holds and does not show: edit lists, frames left empty."""
    with opened(path) as (container, stream):
        return sum(
            packet.dts is not None and (packet.is_discard or not packet.size)
            for packet in container.demux(stream)
        )


def _varies(timeline: Timeline) -> bool:
    """Tell whether frames come at unequal times, beyond what rounding to ticks does."""
    if not timeline.exact or len(timeline) < 3:
        return False
    steps = np.diff(timeline.pts)
    usual = float(np.median(steps))
    rounding = 1 if usual > 1 else 0
    return bool(np.ptp(steps) > max(rounding, _VARIES * usual))


def _duration(times: Float64[np.ndarray, " frames"], rate: float) -> float:
    """Return how long frames are shown; the last one as long as they are in the mean."""
    if len(times) > 1:
        return float(times[-1] - times[0]) * len(times) / (len(times) - 1)
    return 1 / rate if rate else 0.0
