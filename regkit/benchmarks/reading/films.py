"""The films to read when none are given: moving shapes, coded as data sets are."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from regkit.data.timeline import opened, read_timeline

SECONDS = 10
PIECES = 60  # of SECONDS each, in the long film
_NUM_SHAPES = 6
_MARGIN_PX = 64  # that the background is larger than the picture, to pan over it

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Kind:
    """A film to make. keyframes: the largest number of frames from one to the next."""

    width_px: int
    height_px: int
    fps: int
    keyframes: int

    @property
    def name(self) -> str:
        """Say what it is in a file's name."""
        return f"{self.width_px}x{self.height_px}_{self.fps}fps_key{self.keyframes}.mp4"


# Sizes of UCF101 and of the web; every half second, as streams are cut, and x264's own choice.
KINDS = (Kind(320, 240, 25, 12), Kind(320, 240, 25, 250))
KINDS += (Kind(1280, 720, 30, 12), Kind(1280, 720, 30, 250))
LONG = Kind(1920, 1080, 25, 250)


def make(kind: Kind, folder: Path, seconds: float) -> Path:
    """Write a film as H.264 with x264's own options, but for the distance of keyframes."""
    path = folder / kind.name
    with av.open(str(path), "w") as container:
        options = {"g": str(kind.keyframes), "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=kind.fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = kind.width_px, kind.height_px, "yuv420p"
        for picture in pictures(kind, round(seconds * kind.fps)):
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def repeat(piece: Path, pieces: int, folder: Path) -> Path:
    """Write a film that shows another one over and over; nothing is coded anew."""
    path = folder / f"{pieces}_times_{piece.name}"
    timeline = read_timeline(piece)
    with av.open(str(path), "w") as container:
        stream: VideoStream | None = None
        for number in range(pieces):
            with opened(piece) as (source, coded):
                assert coded.time_base is not None
                stream = stream or container.add_stream_from_template(coded)
                for packet in source.demux(coded):
                    if packet.dts is None or packet.pts is None:  # the one that ends a stream
                        continue
                    later = number * round(Fraction(timeline.duration_s) / coded.time_base)
                    packet.pts, packet.dts = packet.pts + later, packet.dts + later
                    packet.stream = stream
                    container.mux(packet)
    return path


def pictures(kind: Kind, num_frames: int) -> Iterator[Picture]:
    """Draw shapes that cross a background which pans, all with textures and without noise."""
    rng = np.random.default_rng(0)
    height, width = kind.height_px, kind.width_px
    background = _texture(height + _MARGIN_PX, width + _MARGIN_PX, rng)
    sides = (rng.uniform(0.15, 0.4, _NUM_SHAPES) * height).astype(int).tolist()
    shapes = [_texture(side, side, rng) for side in sides]
    masks = [_disc(side) if number % 2 else ... for number, side in enumerate(sides)]
    places, speeds = rng.random((_NUM_SHAPES, 2)), rng.uniform(-0.4, 0.4, (_NUM_SHAPES, 2))
    for number in range(num_frames):
        seconds = number / kind.fps
        pan = (_MARGIN_PX / 2 * (1 + np.sin([0.9 * seconds, 0.6 * seconds]))).astype(int)
        picture = background[pan[0] : pan[0] + height, pan[1] : pan[1] + width].copy()
        ways = np.abs((places + speeds * seconds + 1) % 2 - 1)  # there and back
        for shape, mask, way in zip(shapes, masks, ways, strict=True):
            top, left = (way * (np.array([height, width]) - len(shape))).astype(int)
            spot = picture[top : top + len(shape), left : left + len(shape)]
            spot[mask] = shape[mask]
        yield picture


def _texture(height: int, width: int, rng: np.random.Generator) -> Picture:
    """Draw waves of many lengths, the short ones weak, as in pictures of the world."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    drawn = np.zeros((height, width, 3), dtype=np.float32)
    for length_px in np.geomspace(4, 400, 16):
        angle, *phases = rng.uniform(0, 2 * np.pi, 4)
        wave = (np.cos(angle) * x + np.sin(angle) * y) * np.float32(2 * np.pi / length_px)
        drawn += length_px**0.5 * np.sin(wave[..., None] + np.array(phases, dtype=np.float32))
    colour = rng.uniform(80, 170, 3)
    return np.clip(colour + drawn * (45 / drawn.std()), 0, 255).astype(np.uint8)


def _disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return x**2 + y**2 <= side**2 / 4
