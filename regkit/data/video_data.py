"""What all sources of video share: options, loaders, and the last steps on the device."""

import multiprocessing
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from regkit.data.clips import ClipDataset, EpochSampler, Sampling, collate
from regkit.data.sampling import dense, uniform
from regkit.data.video import Splits, Video
from regkit.errors import InputError


@dataclass(kw_only=True, eq=False, repr=False)
class VideoData(LightningDataModule, ABC):
    """Declare a source of labelled videos; a plug says in `videos` where they are.

    Batches hold `clip`, `label` and `path`. Evaluation always takes the same frames, leaves out
    files that cannot be read, and counts no video twice under several ranks; so a batch of
    evaluation may be empty.

    sampling: "uniform" spreads the frames over the video, "dense" takes every `stride`-th.
    cache_mib: of decoded frames, for each worker of each loader.
    on_error: "skip" names unreadable files once and goes on, "raise" stops at the first.
    augment: v2 transforms of one training clip (T, C, H, W). No flip unless asked for: it would
        turn left into right.
    view: "frames", or "differences" of each frame from the one before: what stands still vanishes,
        and with it most of what tells people and places apart.
    mean, std: of each colour, on a scale of 0 to 1; Kinetics' own by default.

    Raises: InputError when an option is out of range.
    """

    num_frames: int = 16
    size_px: int = 64
    sampling: str = "uniform"
    stride: int = 1
    batch_size: int = 16
    num_workers: int = 2
    cache_mib: int = 256
    on_error: str = "skip"
    seed: int = 0
    augment: Sequence[Callable[..., Any]] = ()
    view: str = "frames"
    mean: Sequence[float] = (0.43216, 0.394666, 0.37645)
    std: Sequence[float] = (0.22803, 0.22145, 0.216989)
    splits: Splits | None = field(init=False, default=None)
    skipped: set[str] = field(init=False, default_factory=set)

    def __post_init__(self):
        super().__init__()
        for name in ("num_frames", "size_px", "stride", "batch_size"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("num_workers", "cache_mib", "seed"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check("sampling", self.sampling in ("uniform", "dense"), '"uniform" or "dense"')
        self._check("on_error", self.on_error in ("skip", "raise"), '"skip" or "raise"')
        self._check("view", self.view in ("frames", "differences"), '"frames" or "differences"')
        self._check("mean", len(self.mean) == 3, "three numbers, one a colour")
        self._check("std", len(self.std) == 3 and min(self.std) > 0, "three positive numbers")

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            given = getattr(self, name)
            raise InputError(f"{type(self).__name__} got {name}={given!r}; give {allowed}.")

    @abstractmethod
    def videos(self) -> Splits:
        """List the videos of each split, the same at every call and on every rank."""

    @property
    def classes(self) -> list[str]:
        """Name the classes in the order of their labels; known after `setup`."""
        return self._known_splits().classes

    @property
    def num_classes(self) -> int:
        """Count the classes; known after `setup`."""
        return len(self.classes)

    def example(self) -> Float[Tensor, "1 channels frames height width"]:
        """Return a clip in the shape of training, to trace a model with; its pixels are zero."""
        return torch.zeros(1, 3, self.num_frames, self.size_px, self.size_px)

    def _known_splits(self) -> Splits:
        if self.splits is None:
            raise InputError(
                f"{type(self).__name__} has not looked for its videos yet; "
                "call prepare_data() and setup() first."
            )
        return self.splits

    def setup(self, stage: str | None = None) -> None:
        """Find the videos, once."""
        if self.splits is None:
            self.splits = self.videos()

    def train_dataloader(self) -> DataLoader:
        """Load shuffled clips, sampled at random."""
        return self._loader(self._known_splits().train, training=True)

    def val_dataloader(self) -> DataLoader:
        """Load the validation clips in order, the same at every call."""
        return self._loader(self._known_splits().val, training=False)

    def test_dataloader(self) -> DataLoader:
        """Load the test clips in order, the same at every call."""
        return self._loader(self._known_splits().test, training=False)

    def _loader(self, videos: list[Video], training: bool) -> DataLoader:
        sampling: Sampling = uniform
        if self.sampling == "dense":
            sampling = partial(dense, stride=self.stride)
        dataset = ClipDataset(
            videos,
            num_frames=self.num_frames,
            size_px=self.size_px,
            sampling=sampling,
            training=training,
            seed=self.seed,
            cache_mib=self.cache_mib,
            on_error=self.on_error,
        )
        ranks, rank = 1, 0
        if self.trainer is not None:
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = EpochSampler(dataset, ranks, rank, shuffle=training, seed=self.seed)
        if training and self.trainer is not None:
            # A run that continues draws its first batches before Lightning sets the epoch.
            done = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(getattr(done, "processed"))  # noqa: B009  # declared as its parent
        # joblib's own start method cannot carry a loader's queues
        loky = multiprocessing.get_start_method(allow_none=True) == "loky"
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            multiprocessing_context="fork" if loky and self.num_workers > 0 else None,
            generator=torch.Generator().manual_seed(self.seed),  # else it draws from the global one
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Finish a batch on the device; Lightning calls this."""
        return self.finish(batch, self.trainer is not None and self.trainer.training)

    def finish(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        """Augment (in training), scale and normalise the clips; warn once of each bad file."""
        batch = dict(batch)
        self._warn(batch.pop("skipped"))
        draws, clip = batch.pop("draws"), batch["clip"]
        if training and self.augment and len(clip):
            clip = torch.stack(
                [self._augmented(one, draw) for one, draw in zip(clip, draws, strict=True)]
            )
        clip = functional.to_dtype(clip, torch.float32, scale=True)
        mean, std = (
            torch.tensor(list(values), device=clip.device).view(3, 1, 1, 1)
            for values in (self.mean, self.std)
        )
        clip = (clip - mean) / std
        if self.view == "differences":
            clip = torch.diff(clip, dim=2, prepend=clip[:, :, :1])
        batch["clip"] = clip
        return batch

    def _augmented(self, clip: UInt8[Tensor, "3 t h w"], draw: int) -> Float[Tensor, "3 t2 h2 w2"]:
        devices = [clip.device] if clip.is_cuda else []
        with torch.random.fork_rng(devices):  # v2 transforms draw from the global generator
            torch.manual_seed(draw)
            video = tv_tensors.Video(clip.transpose(0, 1))
            for transform in self.augment:
                video = transform(video)
        video = functional.to_dtype(video.as_subclass(Tensor), torch.float32, scale=True)
        return video.transpose(0, 1)

    def _warn(self, skipped: Sequence[str]) -> None:
        for name in skipped:
            if name not in self.skipped:
                self.skipped.add(name)
                warnings.warn(f"{type(self).__name__} leaves out {name}", stacklevel=2)
