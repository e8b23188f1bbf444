"""All that is asked of one clip: what the class loses without each part of it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from regkit.inference.explain.occlusion import (
    BATCH,
    Clip,
    Net,
    log_odds,
    occluded_channels,
    occluded_places,
    occlusion,
    scores_of,
)
from regkit.inference.explain.order import Order, order_effect

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


def strongest(
    drops: Float[np.ndarray, " starts"], span: int, num: int = NUM_STRONGEST
) -> list[int]:
    """List the starts of the largest drops, above rounding, whose spans do not overlap."""
    found: list[int] = []
    for start in np.argsort(-drops, kind="stable").tolist():
        apart = all(abs(start - other) >= span for other in found)
        if apart and drops[start] > NOISE and len(found) < num:
            found.append(start)
    return found
