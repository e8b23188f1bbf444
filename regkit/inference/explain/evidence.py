"""All that is asked of one clip of a film: what the class loses without each part of it."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from regkit.data.clips import read_clips
from regkit.data.timeline import VideoError
from regkit.data.video import Video
from regkit.errors import InputError
from regkit.inference.explain.occlusion import (
    BATCH,
    Clip,
    Clips,
    Net,
    Order,
    log_odds,
    occluded_channels,
    occluded_places,
    occlusion,
    order_effect,
    scores_of,
)
from regkit.training.checkpoints import TrainedRun

NUM_STRONGEST = 3
NOISE = 1e-5  # nats; what rounding makes of scores in single precision


@dataclass(frozen=True)
class Questions:
    """What is taken away, and how.

    span: frames together; None: a sixth of the clip.
    fill: as in `occlusion`.
    grid: cells a side.
    shuffles: draws of an order of the frames, which follow from `seed`.
    """

    span: int | None = None
    fill: str = "freeze"
    grid: int = 4
    shuffles: int = 8
    seed: int = 0
    batch_size: int = BATCH


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a class loses without parts of a clip, in nats of log-odds; below 0 where it gains.

    target: the class.
    probabilities: of all classes, of the clip as it is.
    log_odds: of the class, of the clip as it is.
    spans: by the first frame of each span of `span` frames.
    """

    target: int
    probabilities: Float[np.ndarray, " classes"]
    log_odds: float
    span: int
    spans: Float[np.ndarray, " starts"]
    channels: Float[np.ndarray, " channels"]
    places: Float[np.ndarray, "rows columns"]
    order: Order

    def probability(self, drop: float = 0.0) -> float:
        """Return that of the class, after its log-odds fell."""
        return float(1 / (1 + np.exp(drop - self.log_odds)))

    @property
    def strongest(self) -> list[int]:
        """List the starts of the spans that carry most, which do not overlap."""
        return strongest(self.spans, self.span)


def gather(net: Net, clip: Clip, target: int | None, questions: Questions) -> Evidence:
    """Ask the net about a clip.

    target: the class; None: the one that is predicted.
    Raises: InputError as `occlusion` does.
    """
    scores = scores_of(net, [clip], 1, target or 0)
    target = int(scores.argmax()) if target is None else target
    num, fill = questions.batch_size, questions.fill
    span = -(-clip.shape[1] // 6) if questions.span is None else questions.span
    places = occluded_places(net, clip, target, questions.grid, fill, num)
    return Evidence(
        target,
        scores[0].double().softmax(0).numpy(),
        float(log_odds(scores, target)),
        span,
        occlusion(net, clip, target, span, fill, num).numpy(),
        occluded_channels(net, clip, target, num).numpy(),
        places.numpy(),
        order_effect(net, clip, target, questions.shuffles, questions.seed, num),
    )


def strongest(drops: Float[np.ndarray, " starts"], span: int) -> list[int]:
    """List the starts of the largest drops, above rounding, whose spans do not overlap."""
    found: list[int] = []
    for start in np.argsort(-drops, kind="stable").tolist():
        apart = all(abs(start - other) >= span for other in found)
        if apart and drops[start] > NOISE and len(found) < NUM_STRONGEST:
            found.append(start)
    return found


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
    try:
        clips, indices, timeline = read_clips(video, held.data.cut(), held.data.file_reader())
    except VideoError as error:
        raise InputError(f"video={error}. Give a video file, or another part of it.") from error
    clip = torch.from_numpy(clips[0]).permute(3, 0, 1, 2).contiguous()
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


def reinitialised(net: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose layers have first weights again.

    Parameters of modules without `reset_parameters` (position tables of transformers) stay.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, 2018, section 3.
    """
    fresh = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh.eval()


def agreement(
    one: Float[np.ndarray, " places"], other: Float[np.ndarray, " places"]
) -> float | None:
    """Return Spearman's rank correlation; None where one of the two is flat.

    Near 1 for a trained and an untrained net: the curve shows the clip, not what was learned.
    """
    ranks = [_ranks(values) for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Float[np.ndarray, " places"]) -> Float[np.ndarray, " places"]:
    """Return ranks; equal values share the mean of theirs."""
    below, equal = values < values[:, None], values == values[:, None]
    return below.sum(1) + equal.sum(1) / 2
