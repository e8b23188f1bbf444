"""Small videos, each of its own content."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write noise below tmp_path; another path is another content."""

    def writer(
        name: str,
        num_frames: int = 20,
        codec: str = "mpeg4",
        times: list[int] | None = None,
        size: tuple[int, int] = (64, 48),
        rate: int = 25,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(name.encode()))
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number in range(num_frames):
                array = rng.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
                frame = VideoFrame.from_ndarray(array, format="rgb24")
                frame.pts = number if times is None else times[number]
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return writer
