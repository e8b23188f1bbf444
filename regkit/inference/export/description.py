"""What another program must know to feed an exported model, and whether it says the same."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from regkit.data.clip_spec import ClipSpec, Sampling
from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.inference.export.exported import Run, scores_of
from regkit.inference.export.formats import INPUT, OUTPUT
from regkit.training.allowed import check_no_address
from regkit.training.checkpoints import TrainedRun
from regkit.training.config import make


def description(held: TrainedRun) -> dict[str, Any]:
    """Describe the model's input and output, and how a video becomes the input, step by step.

    As in the evaluation of its run: `steps` says in words what the other entries say in numbers.
    """
    data = held.data
    cut = data.cut(data.test_views, data.test_crops)
    sampling = cut.sampling
    return {
        "input": {
            "name": INPUT,
            "type": "float32",
            "axes": ["batch", "colour (red, green, blue)", "frame", "row", "column"],
            "shape": ["any", *data.example().shape[1:]],
        },
        "output": {
            "name": OUTPUT,
            "type": "float32",
            "axes": ["batch", "class"],
            "shape": ["any", len(held.model.classes)],
        },
        "classes": held.model.classes,
        "mean": list(data.mean),
        "std": list(data.std),
        "modality": data.modality,
        "sampling": asdict(sampling),
        "short_px": cut.short_px,
        "size_px": cut.size_px,
        "crops": cut.crops,
        "steps": [*_frames(sampling), *_squares(cut), *_numbers(data), _answer(cut)],
    }


def _frames(sampling: Sampling) -> list[str]:
    frames, views = sampling.num_frames, sampling.views
    steps = ["List the frames of the video in the order in which they are shown, from 0."]
    if sampling.fps is not None:
        steps.append(
            f"See it at {sampling.fps:g} frames a second: with t the seconds since the first frame "
            f"and mean the mean of their distances, take n = max(1, round((t[last] + mean) * "
            f"{sampling.fps:g})) moments i / {sampling.fps:g} + 1e-6; at each, the last frame with "
            "t <= moment. A video of one frame stays as it is."
        )
    steps.append("n is the number of frames that there are now.")
    if sampling.kind == "uniform":
        steps.append(
            f"Clip v of {views} takes, for k = 0 .. {frames - 1}, the frame min(n - 1, "
            f"floor((k + (v + 0.5) / {views}) * n / {frames}))."
        )
        return steps
    share = "0.5" if views == 1 else f"v / {views - 1}"
    room = (frames - 1) * sampling.stride + 1
    place = f"floor(max(0, n - {room}) * {share}) + {sampling.stride} * k"
    if sampling.pad == "loop":
        chosen = f"({place}) modulo n: a video too short begins again"
    else:
        chosen = f"min(n - 1, {place}): a video too short repeats its last"
    steps.append(f"Clip v of {views} takes, for k = 0 .. {frames - 1}, the frame {chosen}.")
    return steps


def _squares(cut: ClipSpec) -> list[str]:
    size, short = cut.size_px, cut.short_px
    steps = [
        f"Scale each frame, as RGB, bilinearly (FFmpeg's swscale), to a short side of {short} px "
        f"and a long side of round(long * {short} / short) px; then turn and mirror it as its "
        "display matrix says (ffmpeg does by itself)."
    ]
    middle = f"top = (height - {size}) // 2, left = (width - {size}) // 2"
    if cut.crops == 1:
        return [*steps, f"Cut out the square of {size} px in the middle: {middle}."]
    return [
        *steps,
        f"Cut {cut.crops} squares of {size} px out of it, each of which makes a clip: at the "
        f"beginning, in the middle and at the end of the long side, in the middle of the short one "
        f"({middle}).",
    ]


def _numbers(data: VideoData) -> list[str]:
    steps = ["Of each colour: (value / 255 - mean) / std, as float32."]
    if data.modality == "difference":
        steps.append(
            "Subtract from each frame of the clip the one before it; the first becomes zero."
        )
    return steps


def _answer(cut: ClipSpec) -> str:
    one = "The softmax of its scores are the probabilities of the classes"
    if cut.clips == 1:
        return f"{one}."
    return f"{one} for one clip; of the video, their mean over its {cut.clips} clips."


@dataclass
class Agreement:
    """On how many test clips the class is the same, and how far scores differ at most."""

    clips: int = 0
    same: int = 0
    difference: float = 0.0

    def __str__(self) -> str:
        return (
            f"same class on {self.same} of {self.clips} test clips, "
            f"largest difference {self.difference:.2g}"
        )

    def count(self, expected: Tensor, found: Tensor) -> None:
        """Count the clips of one batch of scores."""
        self.clips += len(expected)
        self.same += int((expected.argmax(1) == found.argmax(1)).sum())
        self.difference = max(self.difference, float((expected - found).abs().max()))


def on_test_clips(held: TrainedRun, run: Run) -> Agreement:
    """Compare the scores of all test clips of the run's data set.

    Raises: InputError when its videos are not there, or there is no test split.
    """
    found, net = Agreement(), scores_of(held.model.net)
    for clips in _test_clips(held):
        found.count(net(clips), run(clips))
    if not found.clips:
        raise InputError("none of the test videos can be read")
    return found


def _test_clips(held: TrainedRun) -> Iterator[Tensor]:
    # Each clip is read once: a cache of the whole data set would take longer.
    check_no_address(held.recipe["data"], str(held.path))
    options = {"cache": "none", "cache_root": None, "num_workers": 0}
    data: VideoData = make(held.recipe["data"], **options).ready()
    if not data.known_splits().test:
        raise InputError("the data set has no test split")
    if data.classes != held.model.classes:
        raise InputError("the data set has other classes by now")
    for batch in data.test_dataloader():
        clips: Tensor = data.finish(batch, training=False)["clip"]
        if len(clips):
            yield clips
