"""Features made by hand, of clips and of whole splits: where edges lie and where they move."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from torch.utils.data import DataLoader, Dataset

from regkit.data.clip_spec import ClipSpec
from regkit.data.clips import read_clips
from regkit.data.readers import Reader
from regkit.data.timeline import VideoError
from regkit.data.video import Video
from regkit.data.video_data import VideoData
from regkit.errors import InputError

LEAST_CELL_PX = 4
_BLOCK = 2  # cells a side, of the normalisation
_STILL = 1e-3  # brightness summed over cells: less is noise, and no motion
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255  # ITU-R BT.601

Grey = Float32[np.ndarray, "size size"]
Cells = Float32[np.ndarray, "cells cells bins"]


@dataclass(frozen=True)
class Features:
    """Describe clips of `num_frames` squares of `size_px`.

    Each frame: in each cell of a grid, a histogram of the orientations of edges (the four
    contrast-normalised versions of a cell averaged, so that a feature is one bin of one cell).
    Each pair of frames: in each cell, a histogram of the directions that edges move to. Both are
    averaged within equal segments of the clip, which keeps the order of events.

    num_cells: along a side of the picture.
    orientations: of edges, over 180 degrees.
    directions: of motion, over 360 degrees; the first is to the right, then clockwise.
    segments: of the clip.
    Raises: InputError when the clips are too small.
    Source: Dalal and Triggs, CVPR 2005 (edges); motion after the histograms of flow of Dalal,
    Triggs and Schmid, ECCV 2006, with the normal flow that two frames determine without a search
    (Horn and Schunck 1981, equation 1).
    """

    num_frames: int
    size_px: int
    num_cells: int = 4
    orientations: int = 9
    directions: int = 8
    segments: int = 4

    def __post_init__(self) -> None:
        if self.size_px < LEAST_CELL_PX * self.num_cells:
            raise InputError(
                f"hog got size_px={self.size_px}; its {self.num_cells} x {self.num_cells} cells "
                f"need data.size_px={LEAST_CELL_PX * self.num_cells} or more."
            )
        if self.num_frames <= self.segments:
            raise InputError(
                f"hog got num_frames={self.num_frames}; its {self.segments} segments of time need "
                f"data.num_frames={self.segments + 1} or more."
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (segments, rows, columns, bins); of the bins, those of edges come first."""
        bins = self.orientations + self.directions
        return (self.segments, self.num_cells, self.num_cells, bins)

    def clip(
        self, frames: UInt8[np.ndarray, "frames size size 3"]
    ) -> Float32[np.ndarray, " features"]:
        """Describe a clip."""
        greys = [self.grey(frame) for frame in frames]
        edges = [self.edges(grey) for grey in greys]
        motion = [self.motion(a, b) for a, b in pairwise(greys)]
        return self.pooled(np.stack(edges), np.stack(motion))

    def pooled(
        self,
        edges: Float32[np.ndarray, "frames cells cells orientations"],
        motion: Float32[np.ndarray, "pairs cells cells directions"],
    ) -> Float32[np.ndarray, " features"]:
        """Average within segments; motion as a share of all that moves in the clip.

        Whoever is far away moves fewer pixels. The root of the shares, as large ones would drown
        the rest (Arandjelovic and Zisserman, CVPR 2012).
        """
        moved = motion.sum(axis=(1, 2, 3)).mean()
        parts = [
            np.stack([part.mean(0) for part in np.array_split(one, self.segments)])
            for one in (edges, motion / (moved + _STILL))
        ]
        return np.concatenate([parts[0], np.sqrt(parts[1])], axis=-1).ravel()

    def grey(self, frame: UInt8[np.ndarray, "whole whole 3"]) -> Grey:
        """Return the brightness from 0 to 1, without the rim that fills no cell."""
        side = self.size_px // self.num_cells * self.num_cells
        return frame[:side, :side] @ _LUMA

    def edges(self, grey: Grey) -> Cells:
        """Return the orientations of edges in each cell, averaged over the blocks it is in."""
        cell_px = self.size_px // self.num_cells
        blocks = _hog()(
            grey,
            self.orientations,
            (cell_px, cell_px),
            (_BLOCK, _BLOCK),
            block_norm="L2-Hys",
            feature_vector=False,
        )
        sums = np.zeros((self.num_cells, self.num_cells, self.orientations), dtype=np.float32)
        counts = np.zeros((self.num_cells, self.num_cells, 1), dtype=np.float32)
        along = self.num_cells - _BLOCK + 1
        for row, column in product(range(_BLOCK), repeat=2):
            sums[row : row + along, column : column + along] += blocks[:, :, row, column]
            counts[row : row + along, column : column + along] += 1
        return sums / counts

    def motion(self, before: Grey, after: Grey) -> Cells:
        """Return the directions that edges move to in each cell, each pixel by its change.

        What travels with velocity v changes brightness by  d = -v . gradient:  of v, the part
        across the edge is seen, and it points along  -d gradient.
        """
        change, middle = after - before, (before + after) / 2
        down, right = np.gradient(middle)
        angle = np.arctan2(-change * down, -change * right)
        bins = np.rint(angle * (self.directions / (2 * np.pi))).astype(np.int64) % self.directions
        cell_px = self.size_px // self.num_cells
        along = np.arange(len(change)) // cell_px
        cells = along[:, None] * self.num_cells + along
        places = cells * self.directions + bins
        shape = (self.num_cells, self.num_cells, self.directions)
        weight = np.abs(change).ravel() / cell_px**2
        counts = np.bincount(places.ravel(), weight, minlength=int(np.prod(shape)))
        return counts.reshape(shape).astype(np.float32)


def _hog() -> Callable[..., np.ndarray]:
    """Return scikit-image's function, which is needed here alone."""
    try:
        from skimage.feature import hog
    except ImportError as error:
        raise InputError('hog needs scikit-image. pip install -e ".[hog]"') from error
    return hog


@dataclass(frozen=True)
class Row:
    """A video as features.

    values: of each clip that is taken of it.
    step_s: from one of a clip's frames to the next, in the mean.
    seconds: that the clips last.
    read_s, describe_s: what it took to read the clips, and to compute their features.
    """

    video: Video
    values: Float32[np.ndarray, "clips features"]
    step_s: float
    seconds: float
    read_s: float
    describe_s: float


@dataclass(frozen=True, eq=False)
class Table:
    """The videos of a split that could be read; of the others, the reasons."""

    rows: Sequence[Row]
    skipped: Sequence[str]

    @property
    def labels(self) -> list[int]:
        """Return the label of each video."""
        return [row.video.label for row in self.rows]


def tabulate(data: VideoData, videos: Sequence[Video], cut: ClipSpec, features: Features) -> Table:
    """Read and describe videos, with the workers of `data`.

    Raises: InputError when a file cannot be read and data.on_error is raise.
    """
    described = _Described(videos, cut, data.file_reader(), features)
    loader: Any = DataLoader(described, batch_size=None, num_workers=data.num_workers)
    rows, skipped = [], []
    for found in loader:
        if isinstance(found, Row):
            rows.append(found)
        elif data.on_error == "raise":
            raise InputError(f"hog could not read {found}. Mend or remove it.")
        else:
            skipped.append(found)
    return Table(rows, skipped)


@dataclass
class _Described(Dataset):
    videos: Sequence[Video]
    cut: ClipSpec
    reader: Reader
    features: Features

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, place: int) -> Row | str:
        """Return the reason in place of a row where the video cannot be read."""
        began = time.perf_counter()
        video = self.videos[place]
        try:
            clips, indices, timeline = read_clips(video, self.cut, self.reader)
        except VideoError as error:
            return str(error)
        read = time.perf_counter()
        values = np.stack([self.features.clip(clip) for clip in clips])
        done = time.perf_counter()
        times = timeline.times_s[indices]
        seconds = float((times[:, -1] - times[:, 0]).mean())
        step_s = seconds / (indices.shape[1] - 1)
        return Row(video, values, step_s, seconds, read - began, done - read)
