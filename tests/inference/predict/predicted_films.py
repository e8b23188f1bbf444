"""Small films with known frames."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

CLASSES = ["clockwise", "counterclockwise", "down", "left", "right", "up"]


def drawn(num_frames: int, size: tuple[int, int] = (48, 32), seed: int = 0) -> list[np.ndarray]:
    """Draw coarse noise that drifts, so that every frame differs and coding does little harm."""
    rng = np.random.default_rng(seed)
    width, height = size
    base = rng.integers(0, 160, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    base = base.repeat(8, 0).repeat(8, 1)[:height, :width]
    return [np.roll(base, k, axis=1) + np.uint8(2 * k % 90) for k in range(num_frames)]


def write_film(
    path: Path,
    frames: Sequence[np.ndarray],
    fps: int = 25,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """Write frames; `times` in ticks of 1 / fps where the rate varies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number, array in enumerate(frames):
            frame = VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
