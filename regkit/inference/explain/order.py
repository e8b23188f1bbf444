"""Whether the order of the frames carried a decision, and whether anything had to move."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from regkit.errors import InputError
from regkit.inference.explain.occlusion import BATCH, Clip, Net, drops


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
    net: Net,
    clip: Clip,
    target: int,
    num_draws: int = 8,
    seed: int = 0,
    batch_size: int = BATCH,
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
