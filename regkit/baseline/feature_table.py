"""Features of whole splits, a row a video, and how long they took."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from torch.utils.data import DataLoader, Dataset

from regkit.baseline.features import Features
from regkit.data.clip_spec import ClipSpec
from regkit.data.readers import Reader
from regkit.data.timeline import VideoError
from regkit.data.video import Video
from regkit.data.video_data import VideoData
from regkit.errors import InputError


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
    loader: Any = DataLoader(
        described, batch_size=None, num_workers=data.num_workers, collate_fn=_as_it_is
    )
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
            timeline = self.reader.timeline(video.path)
            indices = self.cut.indices(video, timeline, None)
            short_px = self.cut.short_px
            frames = self.reader.frames(video.path, np.unique(indices), short_px, timeline)
        except VideoError as error:
            return str(error)
        clips = self.cut.clip(indices, frames, None)
        read = time.perf_counter()
        values = np.stack([self.features.clip(clip) for clip in clips])
        done = time.perf_counter()
        times = timeline.times_s[indices]
        seconds = float((times[:, -1] - times[:, 0]).mean())
        step_s = seconds / (indices.shape[1] - 1)
        return Row(video, values, step_s, seconds, read - began, done - read)


def _as_it_is(found: Any) -> Any:
    return found
