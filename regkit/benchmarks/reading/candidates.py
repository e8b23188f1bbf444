"""Who takes part: ways to read the same clips of the same files."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torchvision.transforms.v2 import functional

from regkit.data.cache import Cached, Store
from regkit.data.clip_spec import ClipSpec, Sampling
from regkit.data.clips import ClipDataset
from regkit.data.readers import Indexed, PyAV, Reader, unavailable
from regkit.data.timeline import Index
from regkit.data.video import Video

WHOLE, WHOLE_TORCHCODEC = "whole file, PyAV", "whole file, torchcodec"
TORCHCODEC, DECORD = "torchcodec, seek", "decord"
PYAV, REENCODE, MEMMAP = "regkit", "regkit, reencode", "regkit, memmap"
ONE_READING, TEN_READINGS = "ten views, one reading", "ten views, ten readings"
VIEWS = 10
COPIES = ("reencode", "memmap")

Clips = UInt8[np.ndarray, "clips frames size size 3"]
Frames = UInt8[np.ndarray, "frames height width 3"]
Read = Callable[[int, int], Clips]


@dataclass(frozen=True)
class Task:
    """The clips to read: of `num_frames`, chosen by `sampling`, squares of `short_px`.

    threads: of every decoder; 0 lets it choose.
    """

    num_frames: int
    stride: int
    short_px: int
    threads: int
    sampling: str = "dense"

    def cut(self, views: int = 1) -> ClipSpec:
        """Say what regkit makes of a video."""
        sampling = Sampling(self.num_frames, self.sampling, self.stride, views=views)
        return ClipSpec(sampling, self.short_px, self.short_px)

    def places(self, num_available: int, index: int, draw: int) -> Int64[np.ndarray, " frames"]:
        """Draw the frames that `ClipDataset` draws for this file and epoch."""
        rng = np.random.default_rng([0, draw, index])
        return self.cut().sampling(np.arange(num_available) / 25, rng)[0]

    def square(self, frames: Frames) -> Clips:
        """Cut the middle, as one clip."""
        top, left = ((side - self.short_px) // 2 for side in frames.shape[1:3])
        return frames[None, :, top : top + self.short_px, left : left + self.short_px]


@dataclass(frozen=True)
class Film:
    """Files that are read in turn, and where copies of them are.

    sides: height and width of the scaled frames of each file.
    alike: the files are one video under several names.
    left_out: contestants that cannot read it, and why.
    """

    name: str
    paths: Sequence[str]
    sides: Sequence[tuple[int, int]]
    root: str
    alike: bool
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """One way to read: `read(index, draw)` returns clip number `draw` of a file.

    num_clips: how many one call returns.
    steady: all clips of a video take equally long.
    """

    name: str
    read: Read
    num_clips: int = 1
    steady: bool = False


def absent() -> dict[str, str]:
    """Say which libraries are not there to compare with, and why."""
    found = {}
    reason = unavailable()
    if reason is not None:
        found["torchcodec"] = reason
    if importlib.util.find_spec("decord") is None:
        found["decord"] = "it is not installed"
    return found


def others(film: Film, task: Task) -> list[Contestant]:
    """Return those of other libraries, which need not be there, nor read every file."""
    missing, found = absent(), []
    if "torchcodec" not in missing:
        whole = _whole_torchcodec(film, task)
        found.append(Contestant(WHOLE_TORCHCODEC, whole, steady=True))
        found.append(Contestant(TORCHCODEC, _torchcodec(film, task)))
    if "decord" not in missing:
        found.append(Contestant(DECORD, _decord(film, task)))
    return found


def failing(film: Film, task: Task) -> dict[str, str]:
    """Let other libraries read a clip of each file, and say which cannot, and why."""
    found = {}
    for entrant in others(film, task):
        for index in range(len(film.paths)):
            try:
                entrant.read(index, 0)
            except Exception as error:  # theirs, of any type
                reason = next(iter(str(error).splitlines()), "")
                found[entrant.name] = f"{type(error).__name__}, {reason}"
                break
    return found


def training(film: Film, task: Task) -> list[Contestant]:
    """Return all that read one random clip, the baseline first."""
    found = [Contestant(WHOLE, _whole_pyav(film, task), steady=True)]
    found += [entrant for entrant in others(film, task) if entrant.name not in film.left_out]
    reader = indexed(film, task.threads)
    found.append(Contestant(PYAV, _regkit(film, task, reader)))
    for name, kind in zip((REENCODE, MEMMAP), COPIES, strict=True):
        cached = Cached(reader, Store(film.root, kind, task.short_px))
        found.append(Contestant(name, _regkit(film, task, cached)))
    return found


def views(film: Film, task: Task) -> list[Contestant]:
    """Return two that read all views of a test video."""
    reader = indexed(film, task.threads)
    cut = task.cut(VIEWS)
    dataset = _dataset(film, cut, reader, False)

    def one(index: int, draw: int) -> Clips:
        return _clips(dataset, index, draw)

    def ten(index: int, draw: int) -> Clips:
        path = film.paths[index]
        timeline = reader.timeline(path)
        found = []
        for row in cut.indices(Video(path, 0, path), timeline, None):
            frames = reader.frames(path, np.unique(row), task.short_px, timeline)
            found.append(cut.clip(row[None], frames, None))
        return np.concatenate(found)

    return [
        Contestant(TEN_READINGS, ten, VIEWS, steady=True),
        Contestant(ONE_READING, one, VIEWS, steady=True),
    ]


def threads(film: Film, task: Task) -> list[Contestant]:
    """Return regkit's decoder with one thread, with two, and with as many as it likes."""
    return [
        Contestant(name, _regkit(film, task, indexed(film, number)))
        for name, number in (("1 thread", 1), ("2 threads", 2), ("auto", 0))
    ]


def indexed(film: Film, num_threads: int) -> Reader:
    """Return what reads files by default."""
    return Indexed(PyAV(num_threads), Index(str(Path(film.root, "index.db"))))


def _regkit(film: Film, task: Task, reader: Reader) -> Read:
    dataset = _dataset(film, task.cut(), reader, True)
    return lambda index, draw: _clips(dataset, index, draw)


def _dataset(film: Film, cut: ClipSpec, reader: Reader, is_training: bool) -> ClipDataset:
    """Return one that remembers nothing, as if there were more videos than memory."""
    videos = [Video(path, 0, path) for path in film.paths]
    return ClipDataset(videos, cut, reader, is_training, worker_ram_mib=0, on_error="raise")


def _clips(dataset: ClipDataset, index: int, draw: int) -> Clips:
    return dataset[draw, index]["clip"].permute(0, 2, 3, 4, 1).numpy()


def _whole_pyav(film: Film, task: Task) -> Read:
    def read(index: int, draw: int) -> Clips:
        with av.open(film.paths[index]) as container:
            container.streams.video[0].codec_context.thread_count = task.threads
            arrays = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        frames = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        return _picked(frames, task, index, draw)

    return read


def _whole_torchcodec(film: Film, task: Task) -> Read:
    decoder = import_module("torchcodec.decoders").VideoDecoder

    def read(index: int, draw: int) -> Clips:
        frames = decoder(film.paths[index], num_ffmpeg_threads=task.threads)[:]
        return _picked(frames, task, index, draw)

    return read


def _picked(frames: torch.Tensor, task: Task, index: int, draw: int) -> Clips:
    """Choose frames of a whole video, then scale them, as tutorials do."""
    chosen = frames[task.places(len(frames), index, draw)]
    scaled = functional.resize(chosen, [task.short_px], antialias=True)
    return task.square(scaled.permute(0, 2, 3, 1).numpy())


def _torchcodec(film: Film, task: Task) -> Read:
    decoder = import_module("torchcodec.decoders").VideoDecoder
    resize = import_module("torchcodec.transforms").Resize

    def read(index: int, draw: int) -> Clips:
        found = decoder(
            film.paths[index],
            num_ffmpeg_threads=task.threads,
            dimension_order="NHWC",
            transforms=[resize(film.sides[index])],
        )
        places = task.places(len(found), index, draw)
        return task.square(found.get_frames_at(places.tolist()).data.numpy())

    return read


def _decord(film: Film, task: Task) -> Read:
    reader = import_module("decord").VideoReader

    def read(index: int, draw: int) -> Clips:
        height, width = film.sides[index]
        found = reader(film.paths[index], width=width, height=height, num_threads=task.threads)
        places = task.places(len(found), index, draw)
        return task.square(found.get_batch(places.tolist()).asnumpy())

    return read
