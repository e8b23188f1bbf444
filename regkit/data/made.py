"""Make a small labelled data set of moving shapes whose class is the motion alone."""

import hashlib
import os
import sys
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from tqdm import tqdm

from regkit.data.video import SPLITS, Splits, Video
from regkit.data.video_data import VideoData
from regkit.files import replacing, sweep_drafts

_CLASSES = ["clockwise", "counterclockwise", "down", "left", "right", "up"]
_HEADING = {"down": (0, 1), "left": (-1, 0), "right": (1, 0), "up": (0, -1)}  # y points down
_TURN = {"clockwise": 1, "counterclockwise": -1}
_RADIUS = (0.2, 0.3)  # of the picture's side
_SPEED = (0.03, 0.06)  # sides a frame
_RATE = (0.2, 0.4)  # radians a frame
_DARK, _LIGHT = (10, 90), (130, 240)  # grey levels of background and shapes
_EXACT = {"crf": "18", "x264-params": "threads=1:lookahead-threads=1:sliced-threads=0:mbtree=0"}
_ABANDONED_S = 86400.0  # after which half-made videos are taken for those of a killed process
_FORMAT = 2  # raise when the same options come to mean other videos


@dataclass(kw_only=True, eq=False, repr=False)
class SyntheticMotion(VideoData):
    """Write videos of one turning or drifting shape once, then read them like any other files.

    One frame says nothing of the class: place and angle are uniform at every moment (the picture
    wraps around), and all else (shape, size, colours, speed) is drawn alike in every class.

    root: where to write; the user's cache folder by default.
    noise: standard deviation of the pixels' noise, in grey levels of 255.
    num_distractors: further shapes, which drift along a diagonal.
    label_noise: share of training labels that are replaced by a wrong one.

    Raises: InputError when an option is out of range.
    """

    size_px: int = 32
    root: str | None = None
    num_train: int = 480
    num_val: int = 120
    num_test: int = 240
    video_frames: int = 16
    video_px: int = 32
    noise: float = 8.0
    num_distractors: int = 0
    label_noise: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        least = len(_CLASSES)
        for name in ("num_train", "num_val", "num_test"):
            count = getattr(self, name)
            whole = isinstance(count, int) and count >= least
            self._check(name, whole, f"a whole number, {least} or more, one a class")
        self._check("video_frames", self.video_frames >= 2, "2 or more")
        sized = self.video_px >= 16 and self.video_px % 2 == 0
        self._check("video_px", sized, "an even number from 16 on")
        for name in ("noise", "num_distractors"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check("label_noise", 0 <= self.label_noise <= 1, "a share from 0 to 1")

    @property
    def folder(self) -> Path:
        """Name the folder of these videos: equal options share it."""
        counts = (self.num_train, self.num_val, self.num_test, self.num_distractors)
        options = (_FORMAT, *counts, self.video_frames, self.video_px, float(self.noise), self.seed)
        key = hashlib.sha256(repr(options).encode()).hexdigest()[:12]
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(self.root or Path(cache, "regkit", "made")) / key

    def prepare_data(self) -> None:
        """Write the videos, unless they are there. Safe to run side by side."""
        if not self.folder.is_dir():
            self._make()
        super().prepare_data()

    def _make(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        sweep_drafts(self.folder.parent, older_s=_ABANDONED_S)
        try:
            with replacing(self.folder) as draft:
                self._write(draft)
        except OSError:
            if not self.folder.is_dir():  # else another process was faster
                raise

    def _write(self, folder: Path) -> None:
        plan = [
            (place, split, number, path)
            for place, split in enumerate(SPLITS)
            for number, path in enumerate(self._paths(split))
        ]
        bar = tqdm(plan, desc="made videos", unit="video", file=sys.stderr, disable=None)
        for place, split, number, path in bar:
            target = folder / split / path
            target.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([self.seed, place, number])
            motion = target.parent.name
            size = (self.video_frames, self.video_px)
            write_video(target, render(motion, rng, *size, self.noise, self.num_distractors))

    def _paths(self, split: str) -> list[str]:
        count = getattr(self, f"num_{split}")
        motions = islice(cycle(_CLASSES), count)
        return [f"{motion}/{number:05d}.mp4" for number, motion in enumerate(motions)]

    def videos(self) -> Splits:
        """List the videos; some training labels are wrong when `label_noise` asks for it."""
        splits = {
            split: [
                Video(str(self.folder / split / path), number % len(_CLASSES), f"{split}/{path}")
                for number, path in enumerate(self._paths(split))
            ]
            for split in SPLITS
        }
        splits["train"] = self._mislabelled(splits["train"])
        return Splits(**splits, classes=_CLASSES)

    def _mislabelled(self, videos: list[Video]) -> list[Video]:
        rng = np.random.default_rng([self.seed, 3])  # 0 to 2 made the splits
        chosen = rng.permutation(len(videos))[: round(self.label_noise * len(videos))]
        shift = np.zeros(len(videos), dtype=int)
        shift[chosen] = rng.integers(1, len(_CLASSES), size=len(chosen))
        return [
            replace(video, label=int(video.label + by) % len(_CLASSES))
            for video, by in zip(videos, shift, strict=True)
        ]


def render(
    motion: str,
    rng: np.random.Generator,
    num_frames: int,
    size_px: int,
    noise: float,
    num_distractors: int,
) -> UInt8[np.ndarray, "frames size size 3"]:
    """Draw one video. Its frames are a function of `rng`, bit by bit."""
    background, ink = rng.uniform(*_DARK, size=3), rng.uniform(*_LIGHT, size=3)
    picture = np.broadcast_to(background, (num_frames, size_px, size_px, 3))
    for _ in range(num_distractors):
        diagonal = rng.choice([-1.0, 1.0], size=2) / np.sqrt(2)
        cover = _cover(diagonal, 0.0, rng, num_frames, size_px)
        picture = picture + cover * (rng.uniform(*_LIGHT, size=3) - picture)
    heading = np.array(_HEADING.get(motion, (0, 0)), dtype=float)
    cover = _cover(heading, float(_TURN.get(motion, 0)), rng, num_frames, size_px)
    picture = picture + cover * (ink - picture) + noise * rng.standard_normal(picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _cover(
    heading: Float[np.ndarray, " xy"],
    turn: float,
    rng: np.random.Generator,
    num_frames: int,
    size_px: int,
) -> Float[np.ndarray, "frames size size 1"]:
    """Draw how much of each pixel one shape covers, its edges smooth over a pixel."""
    kind = _KINDS[rng.integers(len(_KINDS))]
    radius = rng.uniform(*_RADIUS)
    time = np.arange(num_frames)[:, None, None]
    speed = rng.uniform(*_SPEED)
    rate = rng.uniform(*_RATE)
    x, y = (rng.random(2)[:, None, None, None]) + speed * time * heading[:, None, None, None]
    angle = 2 * np.pi * rng.random() + rate * turn * time
    grid = (np.arange(size_px) + 0.5) / size_px
    right = (grid[None, None, :] - x + 0.5) % 1 - 0.5  # the picture is a torus
    down = (grid[None, :, None] - y + 0.5) % 1 - 0.5
    u = (np.cos(angle) * right + np.sin(angle) * down) / radius
    v = (np.cos(angle) * down - np.sin(angle) * right) / radius
    distance_px = kind(u, v) * radius * size_px
    return np.clip(0.5 - distance_px, 0, 1)[..., None]


Plane = Float[np.ndarray, "frames rows columns"]


def _dart(u: Plane, v: Plane) -> Plane:
    """Distance from an arrow head that points along u."""
    return np.maximum(np.abs(v) * 0.92 + u * 0.39 - 0.36, -u - 0.6)


def _half_disc(u: Plane, v: Plane) -> Plane:
    """Distance from half a disc."""
    return np.maximum(np.hypot(u + 0.3, v) - 1, -u - 0.3)


def _pin(u: Plane, v: Plane) -> Plane:
    """Distance from a bar with a knob at one end."""
    bar = np.maximum(np.abs(u) - 0.9, np.abs(v) - 0.22)
    return np.minimum(bar, np.hypot(u - 0.5, v) - 0.5)


_KINDS = (_dart, _half_disc, _pin)


def write_video(path: Path, frames: UInt8[np.ndarray, "frames height width 3"]) -> None:
    """Write an H.264 file so fine (crf 18) that the coding betrays no motion in a still frame.

    Equal frames give equal files: colours are converted by one thread, and x264 does without its
    macroblock tree, which on pictures this small depends on memory that nobody wrote.
    """
    reformatter = VideoReformatter()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options=_EXACT)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for array in frames:
            frame = VideoFrame.from_ndarray(array, format="rgb24")
            frame = reformatter.reformat(frame, format="yuv420p", threads=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
