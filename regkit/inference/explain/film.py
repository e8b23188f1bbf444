"""The clip that testing would take of a film, and a net that reads it as pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchvision.transforms.v2 import functional

from regkit.data.timeline import VideoError
from regkit.data.video import Video
from regkit.errors import InputError
from regkit.inference.explain.occlusion import Clip, Clips, Net
from regkit.training.checkpoints import TrainedRun


@dataclass(frozen=True, eq=False)
class Film:
    """A clip of a film.

    pixels: red, green and blue from 0 to 1, as they are before normalisation and differences:
        what is taken away is taken from the frames that people see.
    times_s: when each frame appears in the film, counted from its first.
    stay_s: how long a frame of the film stays, in the mean.
    """

    video: Video
    pixels: Clip
    times_s: Float64[np.ndarray, " frames"]
    stay_s: float

    def part_s(self, start: int, span: int) -> tuple[float, float]:
        """Return from when to when the film shows the frames of a span."""
        return float(self.times_s[start]), float(self.times_s[start + span - 1]) + self.stay_s


def read_film(held: TrainedRun, video: Video) -> Film:
    """Cut the clip that a test with one view takes of the film.

    Raises: InputError when the file or its part cannot be read.
    """
    cut, reader = held.data.cut(), held.data.file_reader()
    try:
        timeline = reader.timeline(video.path)
        indices = cut.indices(video, timeline, None)
        frames = reader.frames(video.path, np.unique(indices), cut.short_px, timeline)
    except VideoError as error:
        raise InputError(f"video={error}. Give a video file, or another part of it.") from error
    clip = torch.from_numpy(cut.clip(indices, frames, None)[0]).permute(3, 0, 1, 2).contiguous()
    return Film(
        video,
        functional.to_dtype(clip, torch.float32, scale=True),
        timeline.times_s[indices[0]],
        timeline.duration_s / len(timeline),
    )


def on_pixels(held: TrainedRun, net: torch.nn.Module) -> Net:
    """Return the net with the last steps of the data before it: from pixels to scores."""

    def scores(pixels: Clips) -> Float[Tensor, "batch classes"]:
        batch = {"clip": pixels, "skipped": [], "draws": []}
        return net(held.data.finish(batch, training=False)["clip"])

    return scores
