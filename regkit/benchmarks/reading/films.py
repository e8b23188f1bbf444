"""The films to read: made when none are given, copied, and described."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from regkit.benchmarks.reading.candidates import COPIES, Film, Task, failing
from regkit.benchmarks.reading.report import Facts
from regkit.data.cache import Store
from regkit.data.readers import PyAV
from regkit.data.timeline import VideoError, opened, read_timeline
from regkit.errors import InputError

SECONDS = 10
PIECES = 60  # of SECONDS each, in the long film
_NUM_SHAPES = 6
_MARGIN_PX = 64  # that the background is larger than the picture, to pan over it

Picture = UInt8[np.ndarray, "height width 3"]
# Frames of a whole file lie in memory twice when tutorials stack them.
MOST_BYTES = 2 << 30


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


def film(name: str, paths: Sequence[str], task: Task, folder: Path) -> Film:
    """Copy the files as regkit's caches do, and see how large their scaled frames are.

    A single file is given a second name, so that none profits from reading the same file again.
    Raises: InputError when a file is no video, or too long for those who read it whole.
    """
    alike = len(paths) == 1
    if alike:
        link = folder / f"again_{Path(paths[0]).name}"
        link.symlink_to(Path(paths[0]).absolute())
        paths = [*paths, str(link)]
    sides = []
    for path in paths:
        try:
            timeline = read_timeline(path)
            size = 3 * len(timeline) * timeline.width_px * timeline.height_px
            if size > MOST_BYTES:
                raise InputError(
                    f"throughput got {path}, whose frames take {size / 2**30:.1f} GiB at once, as "
                    f"the baseline reads them; give files of {MOST_BYTES >> 30} GiB at most."
                )
            frame = PyAV().frames(path, np.array([0]), task.short_px, timeline)
            sides.append(frame.shape[1:3])
            for kind in COPIES:
                Store(str(folder), kind, task.short_px).add(path, timeline)
        except VideoError as error:
            raise InputError(f"throughput cannot read {error}. Give other files.") from error
    made = Film(name, paths, sides, str(folder), alike)
    return replace(made, left_out=failing(made, task))


def describe(made: Film, task: Task) -> Facts:
    """Say what the files hold; codec and size are those of the first."""
    paths = made.paths[:1] if made.alike else made.paths
    timelines = [read_timeline(path) for path in paths]
    with opened(paths[0]) as (_, stream):
        codec = stream.codec_context.name
    gaps = [np.diff(np.append(np.flatnonzero(t.keyframe), len(t))).max() for t in timelines]
    stores = {kind: Store(made.root, kind, task.short_px) for kind in COPIES}
    copies = {
        kind: sum(store.entry(path).stat().st_size for path in paths) / 2**20
        for kind, store in stores.items()
    }
    return Facts(
        name=made.name,
        num_files=len(paths),
        codec=codec,
        width_px=timelines[0].width_px,
        height_px=timelines[0].height_px,
        frames=sum(len(timeline) for timeline in timelines),
        seconds=sum(timeline.duration_s for timeline in timelines),
        keyframes=int(max(gaps)),
        mib=sum(Path(path).stat().st_size for path in paths) / 2**20,
        copies_mib=copies,
        left_out=dict(made.left_out),
    )
