"""Change training clips at random, all frames of a clip in the same way."""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from regkit.errors import InputError

_CHANCE = "a chance from 0 to 1 (0.5: every second clip)"
_HUE = 1 / 4  # of the other colours' strength, as SimCLR has it: hue is what the eye forgives least
_MIX = 0xFFFFFFFF  # PyTorch seeds its generator with the low 32 bits: others than clip 0 has

Clips = UInt8[Tensor, "videos 3 t h w"] | Float[Tensor, "videos 3 t h w"]  # `more` may resize
Labels = Int64[Tensor, " videos"] | Float[Tensor, "videos classes"]


@dataclass(frozen=True)
class Augment:
    """Apply transforms.v2 to a batch of training clips, where it lies, in the order of the fields.

    What is random is a function of `draws` alone, and nothing is left in the global generators.
    Contrast and some operations of RandAugment measure each frame by itself, as v2 does.

    zoom: the least share of the area that a random cut keeps, of 3:4 to 4:3 of the clip's shape; it
        is scaled back to the clip's size. 1: no cut.
    flip: chance to mirror left and right; clips of a class in `no_flip_classes` never are.
    no_flip_classes: labels, or the names of classes, which `for_classes` makes labels.
    colour: how far brightness, contrast and saturation stray from 1, and hue by a quarter of it.
    rand_augment: how many operations of RandAugment, each of strength `magnitude`. It shears, moves
        and rotates; it mirrors nothing.
    erase: chance to black out a box of 2 to 33 % of the area.
    more: further transforms of one clip, a tv_tensors.Video (frames, 3, height, width). They may
        draw from PyTorch's generators, and from no other.
    mixup, cutmix: alpha of the Beta distribution of the shares, 0: off. With both, a coin for each
        batch says which.

    Raises: InputError when an option is out of range.
    Source: Zhang et al., mixup, 2018; Yun et al., CutMix, 2019; Cubuk et al., RandAugment, 2020.
    """

    zoom: int | float = 1.0
    flip: int | float = 0.0
    no_flip_classes: Collection[int | str] = ()
    colour: int | float = 0.0
    rand_augment: int = 0
    magnitude: int = 9
    erase: int | float = 0.0
    more: Sequence[Callable[..., Any]] = ()
    mixup: int | float = 0.0
    cutmix: int | float = 0.0

    def __post_init__(self) -> None:
        above_0 = math.ulp(0.0)
        self._check("zoom", float, above_0, 1, "a share of the area, above 0, to 1 (1: no cut)")
        for name in ("flip", "erase"):
            self._check(name, float, 0, 1, _CHANCE)
        self._check("colour", float, 0, 1, "a strength from 0 (none) to 1")
        self._check("rand_augment", int, 0, math.inf, "a whole number of operations, 0 or more")
        self._check("magnitude", int, 0, 30, "a whole number from 0 to 30")
        for name in ("mixup", "cutmix"):
            self._check(name, float, 0, math.inf, "a finite alpha, 0 (off) or more")
        if isinstance(self.no_flip_classes, str) or not isinstance(
            self.no_flip_classes, Collection
        ):
            raise _refusal(
                "no_flip_classes", self.no_flip_classes, "a list of classes: [left, right]"
            )
        if not isinstance(self.more, Sequence) or not all(callable(one) for one in self.more):
            raise _refusal("more", self.more, "a list of transforms")
        object.__setattr__(self, "no_flip_classes", frozenset(self.no_flip_classes))
        object.__setattr__(self, "more", tuple(self.more))

    def _check(
        self, name: str, kind: type, least: int | float, most: int | float, allowed: str
    ) -> None:
        given = getattr(self, name)
        # YAML's `flip: true` is a number to Python: it would mirror every clip.
        number = isinstance(given, int | kind) and not isinstance(given, bool)
        if not number or not least <= given <= most or math.isinf(given):
            raise _refusal(name, given, allowed)
        object.__setattr__(self, name, kind(given))

    def for_classes(self, classes: Sequence[str]) -> "Augment":
        """Return the same, with labels for the names in `no_flip_classes`.

        Raises: InputError when a name is none of `classes`.
        """
        unknown = [name for name in self.no_flip_classes if name not in classes]
        if unknown:
            raise InputError(
                f"Augment got no_flip_classes={sorted(self.no_flip_classes, key=str)!r}; "
                f"no class is named {', '.join(map(repr, unknown))}. The classes are "
                f"{', '.join(map(repr, classes))}; names that look like numbers need quotes."
            )
        labels = [classes.index(name) for name in self.no_flip_classes if isinstance(name, str)]
        return dataclasses.replace(self, no_flip_classes=labels)

    def __call__(
        self,
        clip: UInt8[Tensor, "videos 3 frames height width"],
        label: Int64[Tensor, " videos"],
        draws: Sequence[int],
        num_classes: int,
        host_label: Sequence[int] | None = None,
    ) -> tuple[Clips, Labels]:
        """Change each clip by its own draw, then mix the batch by the first one.

        host_label: `label` as numbers; without, `no_flip_classes` makes the host wait for a GPU.

        Mixing makes `label` float (videos, num_classes), in batches of one clip too. Where mixup or
        `more` need fractions, `clip` is float from 0 to 1.

        Raises: InputError when names are left in `no_flip_classes`, or `more` returns clips of
            other sizes.
        """
        if any(isinstance(name, str) for name in self.no_flip_classes):
            raise InputError(
                f"Augment got no_flip_classes={sorted(self.no_flip_classes, key=str)!r}; labels "
                "are needed. Call for_classes(classes) first."
            )
        height, width = clip.shape[-2:]
        chains = {flips: self._chain(height, width, flips) for flips in (False, True)}
        if not self.no_flip_classes:
            flips = [True] * len(clip)
        else:
            numbers = label.tolist() if host_label is None else host_label
            flips = [number not in self.no_flip_classes for number in numbers]
        with torch.random.fork_rng([clip.device] if clip.is_cuda else []):
            if len(clip) and any(chains.values()):
                changed = []
                for one, may_flip, draw in zip(clip, flips, draws, strict=True):
                    _seed(draw, clip.device)
                    changed.append(_applied(chains[may_flip], one))
                clip = _stacked(changed)
            if self.mixup or self.cutmix:
                _seed(draws[0] ^ _MIX if draws else 0, clip.device)
                clip, label = self._mixed(clip, label, num_classes)
        return clip, label

    def _chain(self, height: int, width: int, flips: bool) -> list[Callable[..., Any]]:
        chain: list[Callable[..., Any]] = []
        if self.zoom < 1:
            ratio = (3 / 4 * width / height, 4 / 3 * width / height)
            chain.append(v2.RandomResizedCrop((height, width), (self.zoom, 1.0), ratio))
        if self.flip and flips:
            chain.append(v2.RandomHorizontalFlip(self.flip))
        if self.colour:
            chain.append(v2.ColorJitter(self.colour, self.colour, self.colour, self.colour * _HUE))
        if self.rand_augment:
            chain.append(v2.RandAugment(self.rand_augment, self.magnitude))
        if self.erase:
            chain.append(_BlackOut(self.erase))
        return [*chain, *self.more]

    def _mixed(
        self, clip: Clips, label: Int64[Tensor, " videos"], num_classes: int
    ) -> tuple[Clips, Float[Tensor, "videos classes"]]:
        cuts = not self.mixup or (self.cutmix > 0 and bool(torch.rand(()) < 0.5))
        if not cuts:
            clip = functional.to_dtype(clip, torch.float32, scale=True)  # bytes would round
        mix = (
            v2.CutMix(alpha=self.cutmix, num_classes=num_classes)
            if cuts
            else v2.MixUp(alpha=self.mixup, num_classes=num_classes)
        )
        video, label = mix(tv_tensors.Video(clip.transpose(1, 2)), label)
        return video.as_subclass(Tensor).transpose(1, 2).contiguous(), label


class _BlackOut(v2.RandomErasing):
    """Blacks out a box; v2's own copies its colour from the host, which waits for a GPU."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        if params["v"] is not None:
            params = {**params, "v": inpt.new_zeros(1, 1, 1)}
        return super().transform(inpt, params)


def _refusal(name: str, given: object, allowed: str) -> InputError:
    return InputError(f"Augment got {name}={given!r}; give {allowed}.")


def _seed(draw: int, device: torch.device) -> None:
    # torch.manual_seed would seed every GPU, and fork_rng mends only this one
    torch.default_generator.manual_seed(draw)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(draw)


def _applied(
    chain: Sequence[Callable[..., Any]], clip: UInt8[Tensor, "3 frames height width"]
) -> Tensor:
    video = tv_tensors.Video(clip.transpose(0, 1))
    for transform in chain:
        video = transform(video)
        if not isinstance(video, Tensor) or video.ndim != 4 or video.shape[1] != 3:
            given = tuple(video.shape) if isinstance(video, Tensor) else type(video).__name__
            raise _refusal("more", transform, f"a transform of clips; it returned {given}")
    return video.as_subclass(Tensor).transpose(0, 1)


def _stacked(clips: list[Tensor]) -> Clips:
    if any(clip.dtype != torch.uint8 for clip in clips):
        clips = [functional.to_dtype(clip, torch.float32, scale=True) for clip in clips]
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) > 1:
        raise InputError(
            f"Augment got `more` that makes clips of different shapes, {sorted(shapes)}. "
            "End it with a transform that gives them one size."
        )
    return torch.stack(clips)
