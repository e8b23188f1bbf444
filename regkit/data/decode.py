"""Read chosen frames of a video file: the very frames that decoding from the start would give.

Here alone it is decided what a picture is: which way up, whether it is mirrored, how large.
"""

import dataclasses
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Int64, UInt8

from regkit.data.timeline import LostError, Source, Timeline, VideoError, opened, read_timeline

# Decoders that leave out a frame to which no other refers when told so packet by packet, all else
# being equal to the bit. Others look at the order later (libdav1d) or have no such frames.
_SKIPPING = {"h264", "hevc", "mpeg2video", "mpeg4"}
LONGEST = 16  # long side over short side

Picture = UInt8[np.ndarray, "height width 3"]
Shown = UInt8[np.ndarray, "rows columns 3"]
Frames = UInt8[np.ndarray, "frames height width 3"]
Indices = Int64[np.ndarray, " frames"]

_own = threading.local()


def read_frames(
    source: Source,
    indices: Sequence[int] | Indices,
    short_px: int,
    timeline: Timeline | None = None,
    threads: int = 1,
) -> Frames:
    """Decode the frames at `indices` as RGB, upright, the short side scaled to `short_px`.

    From the keyframe before the first wanted frame it decodes only what wanted frames need.
    They are turned and mirrored as metadata say. Where the stream ends before it should, its last
    frame stands in for the missing ones.

    threads: of the decoder; 0 lets it choose, and pays where no other process decodes.
    Raises: VideoError where nothing, or a broken frame on the way, can be decoded.
    """
    timeline = read_timeline(source) if timeline is None else timeline
    wanted, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    counted = dataclasses.replace(timeline, exact=False)
    for skips, known in ((True, timeline), (False, timeline), (False, counted)):
        try:
            found = list(pictures(source, wanted, short_px, known, threads, skips))
            return np.stack(found)[back]
        except LostError:
            continue
    raise AssertionError("counting loses nothing")


def pictures(
    source: Source,
    wanted: Indices,
    short_px: int,
    timeline: Timeline,
    threads: int = 1,
    skips: bool = False,
) -> Iterator[Picture]:
    """Yield the frames at `wanted` (ascending) one by one, scaled and upright.

    skips: leave out frames that no wanted one needs.
    Raises: VideoError; LostError where the file does not follow its timeline, then count instead.
    """
    size = None
    with opened(source, threads) as (container, stream):
        for frame in _walk(container, stream, wanted, timeline, skips):
            if frame is None:
                raise VideoError(source, "no frame could be decoded")
            size = size or sides(frame, short_px, source)
            yield upright(frame, size)


class Orientation(NamedTuple):
    """How stored pictures are shown: first rows and columns are swapped, then each is reversed."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    @property
    def mirrored(self) -> bool:
        """Say whether left and right are swapped, which no turn does."""
        return sum(self) % 2 == 1

    def __call__(self, picture: Picture) -> Shown:
        """Show a stored picture; no pixel is copied."""
        shown = picture.swapaxes(0, 1) if self.transposed else picture
        rows, columns = (-1 if reverse else 1 for reverse in self[1:])
        return shown[::rows, ::columns]

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Return width and height as shown."""
        width, height = frame.width, frame.height
        return (height, width) if self.transposed else (width, height)


def orientation(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a frame; turns between quarters become the nearest quarter.

    A stored point (x, y) is shown at (a x + c y, b x + d y).
    Source: FFmpeg, libavutil/display.h.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, d < 0, a < 0)
    return Orientation(True, b < 0, c < 0)


def upright(frame: VideoFrame, sides: tuple[int, int]) -> Shown:
    """Scale a frame to width and height as they are stored, and show it as its metadata say."""
    scaled = _reformatter().reformat(frame, *sides, "rgb24", threads=1)
    return orientation(frame)(scaled.to_ndarray())


def sides(frame: VideoFrame, short_px: int, source: Source) -> tuple[int, int]:
    """Return width and height of a frame whose short side is scaled to `short_px`.

    Raises: VideoError for a strip, which is no picture and would fill the memory.
    """
    short, long = sorted((frame.width, frame.height))
    if short * LONGEST < long:
        raise VideoError(
            source, f"its frames of {frame.width} x {frame.height} px are no picture but a strip"
        )
    scale = short_px / short
    width, height = (max(short_px, round(side * scale)) for side in (frame.width, frame.height))
    return width, height


def _walk(
    container: InputContainer, stream: VideoStream, wanted: Indices, timeline: Timeline, skips: bool
) -> Iterator[VideoFrame | None]:
    """Yield the frame at each wanted index (ascending), or the last before the stream ends."""
    skips = skips and timeline.exact and stream.codec_context.name in _SKIPPING
    shown = frozenset(timeline.pts[wanted[wanted < len(timeline)]].tolist()) if skips else None
    frames, frame, position = _decoded(container, stream, shown), None, None
    for index in wanted.tolist():
        key = timeline.start(index)
        seeks = key > (0 if position is None else position + 1)
        if seeks:
            container.seek(int(timeline.pts[key]), stream=stream)
            frames, position = _decoded(container, stream, shown), None
        while position is None or position < index:
            following = next(frames, None)
            if following is None:
                break
            frame, position = following, timeline.locate(following, position)
            if (seeks or skips) and position > index:
                raise LostError
            seeks = False
        if seeks or (skips and position != index):  # and nothing came
            raise LostError
        yield frame


def _decoded(
    container: InputContainer, stream: VideoStream, shown: frozenset[int] | None
) -> Iterator[VideoFrame]:
    """Decode on, without the frames that are neither shown (by pts) nor referred to."""
    context = stream.codec_context
    for packet in container.demux(stream):
        if shown is not None:
            needed = packet.pts is None or packet.pts in shown
            context.skip_frame = "DEFAULT" if needed else "NONREF"
        yield from packet.decode()


def _reformatter() -> VideoReformatter:
    """Return this thread's converter: it keeps its scaler from frame to frame, file to file."""
    if not hasattr(_own, "reformatter"):
        _own.reformatter = VideoReformatter()
    return _own.reformatter
