"""Read chosen frames of a video file: the very frames that decoding from the start would give."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Bool, Int64, UInt8


class VideoError(Exception):
    """A file that cannot be read as video."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)  # both, so that the error survives pickling
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _LostError(Exception):
    """A seek landed where the timeline does not know."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a file in the order in which they are shown, as its packets announce them.

    exact: pts tell the frames apart. Without it frames are counted from the start.
    """

    pts: Int64[np.ndarray, " frames"]  # in units of the stream's time base
    keyframe: Bool[np.ndarray, " frames"]
    exact: bool

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def nbytes(self) -> int:
        """Count the bytes that keeping it costs."""
        return self.pts.nbytes + self.keyframe.nbytes

    def start(self, index: int) -> int:
        """Find the last keyframe at or before `index`; 0 where one may not seek."""
        keys = np.flatnonzero(self.keyframe[: index + 1])
        return int(keys[-1]) if self.exact and len(keys) else 0

    def locate(self, frame: VideoFrame, previous: int | None) -> int:
        """Say which frame of the file this is, given the one before it (None after a seek)."""
        if not self.exact:
            return 0 if previous is None else previous + 1
        pts = frame.pts
        index = -1 if pts is None else int(np.searchsorted(self.pts, pts))
        known = 0 <= index < len(self) and self.pts[index] == pts
        if not known or (previous is not None and index <= previous):
            raise _LostError
        return index


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        # An absolute path: FFmpeg would take "a:b.mp4" for a protocol.
        with av.open(os.path.abspath(path)) as container:
            if not container.streams.video:
                raise VideoError(path, "it has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError(path, "no decoder for its codec")
            stream.codec_context.thread_count = 1  # the loader's workers fill the cores
            yield container, stream
    except (FFmpegError, OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, f"{type(error).__name__}, {reason}") from error


def read_timeline(path: str | Path) -> Timeline:
    """List the frames of a file from its packets, without decoding.

    Headers are not trusted: a cut file still announces the frames it has lost.

    Raises: VideoError.
    """
    with _opened(path) as (container, stream):
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard  # edit lists hide frames
        ]
        # AVI stores no pts; with reordered frames FFmpeg's guess is wrong.
        guessed = container.format.name == "avi" and stream.codec_context.has_b_frames
    if not packets:
        raise VideoError(path, "it holds no video frames")
    pts = [pts for pts, _ in packets if pts is not None]
    keyframe = np.array([key for _, key in packets], dtype=bool)
    if guessed or len(set(pts)) < len(packets):
        return Timeline(np.arange(len(packets), dtype=np.int64), keyframe, exact=False)
    order = np.argsort(pts)
    return Timeline(np.array(pts, dtype=np.int64)[order], keyframe[order], exact=True)


def read_frames(
    path: str | Path,
    indices: Sequence[int] | Int64[np.ndarray, " frames"],
    size_px: int,
    timeline: Timeline | None = None,
) -> UInt8[np.ndarray, "frames size size 3"]:
    """Decode the frames at `indices` as RGB squares: short side scaled to `size_px`, centre cut.

    Rotation metadata is honoured. Where the stream ends before it should, its last frame stands
    in for the missing ones.

    Raises: VideoError where nothing, or a broken frame on the way, can be decoded.
    """
    timeline = read_timeline(path) if timeline is None else timeline
    wanted, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    try:
        squares = _read(path, wanted, size_px, timeline)
    except _LostError:
        squares = _read(path, wanted, size_px, dataclasses.replace(timeline, exact=False))
    return squares[back]


def _read(
    path: str | Path, wanted: Int64[np.ndarray, " wanted"], size_px: int, timeline: Timeline
) -> UInt8[np.ndarray, "wanted size size 3"]:
    squares = np.empty((len(wanted), size_px, size_px, 3), dtype=np.uint8)
    reformatter = VideoReformatter()  # keeps its scaler from frame to frame
    with _opened(path) as (container, stream):
        for square, frame in zip(squares, _walk(container, stream, wanted, timeline), strict=True):
            if frame is None:
                raise VideoError(path, "no frame could be decoded")
            square[:] = _square(frame, size_px, reformatter)
    return squares


def _walk(
    container: InputContainer,
    stream: VideoStream,
    wanted: Int64[np.ndarray, " wanted"],
    timeline: Timeline,
) -> Iterator[VideoFrame | None]:
    """Yield the frame at each wanted index (ascending), or the last before the stream ends."""
    frames, frame, position = container.decode(stream), None, None
    for index in wanted.tolist():
        key = timeline.start(index)
        seeks = key > (0 if position is None else position + 1)
        if seeks:
            container.seek(int(timeline.pts[key]), stream=stream)
            frames, position = container.decode(stream), None
        while position is None or position < index:
            following = next(frames, None)
            if following is None:
                break
            frame, position = following, timeline.locate(following, position)
            if seeks and position > index:
                raise _LostError
            seeks = False
        if seeks:  # and nothing came
            raise _LostError
        yield frame


def _square(
    frame: VideoFrame, size_px: int, reformatter: VideoReformatter
) -> UInt8[np.ndarray, "size size 3"]:
    scale = size_px / min(frame.width, frame.height)
    width, height = (max(size_px, round(side * scale)) for side in (frame.width, frame.height))
    scaled = reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
    top, left = (height - size_px) // 2, (width - size_px) // 2
    cut = scaled[top : top + size_px, left : left + size_px]
    return np.rot90(cut, round(frame.rotation / 90))  # counter-clockwise, as FFmpeg counts
