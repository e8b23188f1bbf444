"""What a decision hangs on: take spans of time, channels, places or the order away and look."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regkit.errors import InputError

Clip = Float[Tensor, "channels frames height width"]
Clips = Float[Tensor, "batch channels frames height width"]
Net = Callable[[Clips], Float[Tensor, "batch classes"]]

FILLS = ("freeze", "mean", "flat")
BATCH = 16


def occlusion(
    net: Net, clip: Clip, target: int, span: int, fill: str = "freeze", batch_size: int = BATCH
) -> Float[Tensor, " starts"]:
    """Return what a class loses without the frames from each start on, in nats of log-odds.

    net: scores (logits) of a batch of clips, in eval mode.
    target: the class.
    span: frames that are taken away together.
    fill: what stands in their place. "freeze", the frame before them (of a span at the beginning
        the frame behind): a film that stops and then jumps on, with nothing in it that no film
        shows, so what is missed is what happened, not what was seen. "mean", the clip's mean
        picture: what stays is the background, what is missed is the sight too. "flat", the clip's
        mean colour, which few nets have met.
    Raises: InputError when an argument is out of range, or a score is NaN or infinite.
    Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014, section
        4.2, over time in place of space.
    """
    return drops(net, clip, target, without_spans(clip, span, fill), batch_size)


def occluded_places(
    net: Net, clip: Clip, target: int, grid: int, fill: str = "freeze", batch_size: int = BATCH
) -> Float[Tensor, "rows columns"]:
    """Return what a class loses without each cell of a grid, in all frames; nats of log-odds.

    grid: cells a side.
    fill: "freeze": the cell stands still as in the first frame; else as in `occlusion`.
    Raises: InputError as `occlusion` does.
    """
    copies = without_places(clip, grid, fill)
    return drops(net, clip, target, copies, batch_size).view(grid, grid)


def occluded_channels(
    net: Net, clip: Clip, target: int, batch_size: int = BATCH
) -> Float[Tensor, " channels"]:
    """Return what a class loses when a channel is its own mean everywhere, in nats of log-odds.

    Raises: InputError as `occlusion` does.
    """
    return drops(net, clip, target, without_channels(clip), batch_size)


def log_odds(scores: Float[Tensor, "batch classes"], target: int) -> Float[Tensor, " batch"]:
    """Return log p / (1 - p) of a class, p its softmax probability; in nats.

    Unlike log p it does not flatten out where the net is sure; and between two classes it is the
    difference of their scores, so what adds up there adds up here.
    """
    scores = scores.double()
    others = torch.cat([scores[:, :target], scores[:, target + 1 :]], dim=1)
    return scores[:, target] - others.logsumexp(1)


def drops(
    net: Net, clip: Clip, target: int, copies: Iterable[Clip], batch_size: int = BATCH
) -> Float[Tensor, " copies"]:
    """Return by how many nats of log-odds each changed copy has less of the class than the clip.

    Raises: InputError as `occlusion` does.
    """
    odds = log_odds(scores_of(net, chain([clip], copies), batch_size, target), target)
    return odds[0] - odds[1:]


@torch.no_grad()
def scores_of(
    net: Net, clips: Iterable[Clip], batch_size: int = BATCH, target: int = 0
) -> Float[Tensor, "clips classes"]:
    """Return the scores of clips that are made one by one: only a batch of them is in memory.

    Raises: InputError when the net is in training mode, has no class `target`, or its scores are
        NaN or infinite.
    """
    if isinstance(net, nn.Module) and net.training:
        raise InputError(
            "occlusion got a net in training mode, whose scores depend on the other clips of a "
            "batch and on dropout; call net.eval() first."
        )
    stream, parts = iter(clips), []
    while batch := list(islice(stream, batch_size)):
        parts.append(net(torch.stack(batch)))
    scores = torch.cat(parts)
    if not 0 <= target < scores.shape[1] or scores.shape[1] < 2:
        raise InputError(
            f"occlusion got target={target} for a net of {scores.shape[1]} classes; give one of "
            "them, from 0 on, of two or more."
        )
    if not scores.isfinite().all():
        raise InputError(
            "occlusion got scores that are NaN or infinite; look at the weights, training may "
            "have diverged."
        )
    return scores


def without_spans(clip: Clip, span: int, fill: str = "freeze") -> Iterator[Clip]:
    """Yield the clip without the frames [start, start + span), for each start."""
    num_frames = _sizes(clip)[1]
    _check("span", span, num_frames, "frames")
    still = _still(clip, fill)
    for start in range(num_frames - span + 1):
        if fill == "freeze":
            kept = start - 1 if start else min(span, num_frames - 1)
            still = clip[:, kept : kept + 1]
        copy = clip.clone()
        copy[:, start : start + span] = still
        yield copy


def without_places(clip: Clip, grid: int, fill: str = "freeze") -> Iterator[Clip]:
    """Yield the clip without each cell of a grid, row by row."""
    *_, height, width = _sizes(clip)
    _check("grid", grid, min(height, width), "pixels a side")
    still = _still(clip, fill).expand_as(clip)
    rows, columns = (
        [slice(*ends) for ends in pairwise(round(k * side / grid) for k in range(grid + 1))]
        for side in (height, width)
    )
    for row in rows:
        for column in columns:
            copy = clip.clone()
            copy[..., row, column] = still[..., row, column]
            yield copy


def without_channels(clip: Clip) -> Iterator[Clip]:
    """Yield the clip with one channel after the other replaced by its mean."""
    for channel in range(_sizes(clip)[0]):
        copy = clip.clone()
        copy[channel] = clip[channel].mean()
        yield copy


def _still(clip: Clip, fill: str) -> Float[Tensor, "channels ..."]:
    """Return the picture that stands in for what is taken away, or one that broadcasts to it."""
    if fill not in FILLS:
        raise InputError(f"occlusion got fill={fill!r}; give one of {', '.join(FILLS)}.")
    if fill == "freeze":
        return clip[:, :1]
    return clip.mean(1, keepdim=True) if fill == "mean" else clip.mean((1, 2, 3), keepdim=True)


def _sizes(clip: Tensor) -> tuple[int, ...]:
    if clip.ndim != 4 or not clip.is_floating_point():
        raise InputError(
            f"occlusion got a clip of shape {tuple(clip.shape)} and {clip.dtype}; give one clip "
            "of numbers with a point, (channels, frames, height, width)."
        )
    return tuple(clip.shape)


def _check(name: str, given: int, most: int, what: str) -> None:
    if not 1 <= given <= most:
        raise InputError(f"occlusion got {name}={given} for {most} {what}; give 1 to {most}.")


@dataclass(frozen=True)
class Order:
    """What a class loses, in nats of log-odds, when the frames come otherwise.

    reversed: from the last to the first.
    shuffled: in random order, for each draw.
    still: as the middle frame all the time.
    """

    reversed: float
    shuffled: tuple[float, ...]
    still: float

    @property
    def shuffled_mean(self) -> float:
        """Return the mean over the draws; 0 of a net that looks at each frame for itself."""
        return sum(self.shuffled) / len(self.shuffled)


def order_effect(
    net: Net, clip: Clip, target: int, num_draws: int = 8, seed: int = 0, batch_size: int = BATCH
) -> Order:
    """Measure what a class loses when the frames of a clip come in another order.

    Raises: InputError when num_draws < 1, or as `occlusion` does.
    """
    if num_draws < 1:
        raise InputError(f"order_effect got num_draws={num_draws}; give 1 or more.")
    copies = _reordered(clip, num_draws, seed)
    backwards, still, *shuffled = drops(net, clip, target, copies, batch_size).tolist()
    return Order(backwards, tuple(shuffled), still)


def _reordered(clip: Clip, num_draws: int, seed: int) -> Iterator[Clip]:
    num_frames = clip.shape[1]
    draw = torch.Generator().manual_seed(seed)
    yield clip.flip(1)
    yield clip[:, [num_frames // 2] * num_frames]
    for _ in range(num_draws):
        yield clip[:, torch.randperm(num_frames, generator=draw).to(clip.device)]
