"""A film whose frames tell their number, and one that is drawn as for measuring."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from small_films import GREY_STEP, NUM_FRAMES, TINY

from regkit.benchmarks.reading import films


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame `n` is a flat grey of `GREY_STEP * n`."""
    path = tmp_path_factory.mktemp("films") / "numbered.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", "qp": "1"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = TINY.width_px, TINY.height_px, "yuv420p"
        for number in range(NUM_FRAMES):
            shape = (TINY.height_px, TINY.width_px, 3)
            grey = np.full(shape, GREY_STEP * number, dtype=np.uint8)
            container.mux(stream.encode(VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.make(TINY, tmp_path_factory.mktemp("films"), seconds=1.2)
