"""The detector: all that is needed to tell classes by their features, in one readable file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from regkit.baseline.features import Features
from regkit.data.clip_spec import ClipSpec, Sampling
from regkit.errors import InputError
from regkit.files import write_text

FORMAT = 1  # raise when the same file would come to mean another detector


@dataclass(frozen=True, eq=False)
class Detector:
    """A sparse linear classifier of clips, with the features that it uses alone.

    short_px: frames are scaled to this short side; squares are cut out of their middle.
    step_s: from one frame of a clip to the next, as in training.
    places: of the features in use.
    mean, scale: what they are standardised by.
    """

    classes: Sequence[str]
    features: Features
    short_px: int
    step_s: float
    lam: float
    places: Int64[np.ndarray, " live"]
    mean: Float64[np.ndarray, " live"]
    scale: Float64[np.ndarray, " live"]
    weight: Float64[np.ndarray, "classes live"]
    bias: Float64[np.ndarray, " classes"]

    def __post_init__(self) -> None:
        live, total = len(self.places), int(np.prod(self.features.shape))
        shapes = [self.mean.shape, self.scale.shape, self.weight.shape, self.bias.shape]
        classes = len(self.classes)
        inside = live == 0 or 0 <= self.places.min() <= self.places.max() < total
        if shapes != [(live,), (live,), (classes, live), (classes,)] or not inside:
            raise InputError("Detector got weights that do not fit its features and classes.")
        if not self.step_s > 0:
            raise InputError(
                f"Detector got step_s={self.step_s:g}: most of the videos are of one frame, and "
                "what does not move is no matter for it. Give videos."
            )

    @property
    def cut(self) -> ClipSpec:
        """Say what is cut out of frames."""
        size_px, num_frames = self.features.size_px, self.features.num_frames
        return ClipSpec(Sampling(num_frames), size_px, self.short_px)

    def probabilities(
        self, values: Float32[np.ndarray, "clips features"]
    ) -> Float64[np.ndarray, "clips classes"]:
        """Return the probability of each class."""
        x = (values[:, self.places] - self.mean) / self.scale
        scores = x @ self.weight.T + self.bias
        odds = np.exp(scores - scores.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def dense(self) -> Float64[np.ndarray, "classes segments rows columns bins"]:
        """Return the weights in the places of all features."""
        whole = np.zeros((len(self.classes), int(np.prod(self.features.shape))))
        whole[:, self.places] = self.weight
        return whole.reshape(len(self.classes), *self.features.shape)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        content = {"format": FORMAT, **asdict(self)}
        write_text(path, json.dumps(content, indent=1, default=np.ndarray.tolist))


def load(path: Path) -> Detector:
    """Read what `save` wrote.

    Raises: InputError when it is something else.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise InputError(f"it is not of format {FORMAT}")
        for name in ("mean", "scale", "bias"):
            content[name] = np.asarray(content[name], dtype=np.float64)
        places = np.asarray(content.pop("places"), dtype=np.int64)
        weight = np.asarray(content.pop("weight"), dtype=np.float64)
        weight = weight.reshape(len(content["bias"]), len(places))
        features = Features(**content.pop("features"))
        return Detector(**content, features=features, places=places, weight=weight)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--detector got {path}, which is no hog.json of this verb "
            f"({type(error).__name__}: {error}). Give one that regkit hog has written."
        ) from error
