"""Small videos with known frames."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

Writer = Callable[..., Path]

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder shared/data with real video is not beside this checkout")
    return SHARED


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write frames of noise that drift in brightness, so that every frame differs."""

    def writer(
        name: str,
        num_frames: int = 24,
        codec: str = "libx264",
        times: list[int] | None = None,
        size: tuple[int, int] = (64, 48),
        **options: str,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(name))
        base = rng.integers(0, 128, size=(size[1], size[0], 3))
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number in range(num_frames):
                array = np.roll(base, number, axis=1) + 5 * number
                frame = VideoFrame.from_ndarray(array.astype(np.uint8), format="rgb24")
                frame.pts = number if times is None else times[number]
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return writer


@pytest.fixture
def audio_only(tmp_path: Path) -> Path:
    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        assert isinstance(stream, AudioStream)
        silence = AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return path
