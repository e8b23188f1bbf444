"""What all sources of video share: options, loaders, and the last steps on the device."""

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchvision.transforms.v2 import functional

from regkit.data import cache
from regkit.data.augment import Augment
from regkit.data.cache import Cached, Store
from regkit.data.clip_spec import ClipSpec, Sampling
from regkit.data.clips import ClipDataset, ClipLoader, EpochSampler
from regkit.data.readers import READERS, Indexed, Reader
from regkit.data.timeline import Index
from regkit.data.video import SPLITS, Splits, resampled
from regkit.errors import InputError

_CHOICES = {
    "sampling": ("uniform", "dense"),
    "pad": ("repeat", "loop"),
    "test_crops": (1, 3),
    "reader": tuple(READERS),
    "cache": cache.KINDS,
    "on_error": ("skip", "raise"),
    "modality": ("rgb", "difference"),
}


@dataclass(kw_only=True, eq=False, repr=False)
class VideoData(LightningDataModule, ABC):
    """Declare a source of labelled videos; a plug says in `videos` where they are.

    Batches hold `clip`, `label` and what `clips.collate` names. Evaluation always takes the same
    frames, leaves out files that cannot be read, and counts no video twice under several ranks; so
    a batch of evaluation may be empty.

    short_px: frames are scaled to this short side, then squares of `size_px` are cut out; None:
        `size_px` itself.
    sampling, stride, fps, pad: as in `sampling.Sampling`.
    random_crop: training cuts the square at a random place, not in the middle.
    test_views, test_crops: clips of each test video, and squares of each (1, or 3 along the long
        side), whose scores are averaged; validation takes one.
    reader: what decodes, "pyav" or "torchcodec".
    cache: copies of the videos that are fast to read, made before training and kept in
        `cache_root` (None: the user's cache folder) up to `cache_gib`: "memmap" (frames as
        pixels), "reencode" (small H.264 files), "auto" (what fits), "none".
    worker_ram_mib: of decoded frames, for each worker of each loader.
    on_error: "skip" names unreadable files once and goes on, "raise" stops at the first.
    timeout_s: how long a worker may take for a batch.
    augment: of training clips. No flip unless asked for: it would turn left into right.
    modality: "rgb", or "difference" of each frame from the one before: what stands still vanishes,
        and with it most of what tells people and places apart.
    mean, std: of each colour, on a scale of 0 to 1; Kinetics' own by default.
    cv_folds: to choose options by cross-validation. The videos of training and validation together
        are dealt to so many folds by whole groups, the same for equal seeds of the data; `cv_fold`
        (from 1) is validated on, the others train. At fold 0 all of them train and none is
        validated on: the last fit, with what was chosen. The test split takes no part.
    bootstrap: seed of a sample of the training videos: as many groups as there are, drawn with
        replacement; what is drawn twice is there twice.

    Raises: InputError when an option is out of range.
    """

    num_frames: int = 16
    size_px: int = 64
    short_px: int | None = None
    sampling: str = "uniform"
    stride: int = 1
    fps: int | float | None = None
    pad: str = "repeat"
    random_crop: bool = False
    test_views: int = 1
    test_crops: int = 1
    batch_size: int = 16
    num_workers: int = 2
    reader: str = "pyav"
    cache: str = "none"
    cache_gib: int | float = 20.0
    cache_root: str | None = None
    worker_ram_mib: int = 256
    on_error: str = "skip"
    timeout_s: int | float = 600.0
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    modality: str = "rgb"
    mean: Sequence[float] = (0.43216, 0.394666, 0.37645)
    std: Sequence[float] = (0.22803, 0.22145, 0.216989)
    cv_folds: int | None = None
    cv_fold: int = 0
    bootstrap: int | None = None
    listed: Splits | None = field(init=False, default=None)
    splits: Splits | None = field(init=False, default=None)
    skipped: set[str] = field(init=False, default_factory=set)

    def __post_init__(self):
        super().__init__()
        for name in ("num_frames", "size_px", "stride", "batch_size", "test_views"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("num_workers", "worker_ram_mib", "seed"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("cache_gib", "timeout_s"):
            self._check(name, getattr(self, name) > 0, "more than 0")
        for name, allowed in _CHOICES.items():
            self._check(name, getattr(self, name) in allowed, f"one of {list(allowed)}")
        self._check("fps", self.fps is None or self.fps > 0, "a rate above 0, or null")
        fits = self.short_px is None or self.short_px >= self.size_px
        self._check("short_px", fits, f"size_px={self.size_px} or more, or null")
        self._check("mean", len(self.mean) == 3, "three numbers, one a colour")
        self._check("std", len(self.std) == 3 and min(self.std) > 0, "three positive numbers")
        self._check("cv_folds", self.cv_folds is None or self.cv_folds >= 2, "2 or more, or null")
        allowed = "0, or cv_folds too" if self.cv_folds is None else f"0 to {self.cv_folds}"
        self._check("cv_fold", 0 <= self.cv_fold <= (self.cv_folds or 0), allowed)
        drawn = self.bootstrap is None or self.bootstrap >= 0
        self._check("bootstrap", drawn, "a seed, 0 or more, or null")

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
        return self.known_splits().classes

    @property
    def num_classes(self) -> int:
        """Count the classes; known after `setup`."""
        return len(self.classes)

    def example(self) -> Float[Tensor, "1 channels frames height width"]:
        """Return a clip in the shape of training, to trace a model with; its pixels are zero."""
        return torch.zeros(1, 3, self.num_frames, self.size_px, self.size_px)

    def known_splits(self) -> Splits:
        """Return the videos that `setup` has found.

        Raises: InputError before `setup`.
        """
        if self.splits is None:
            raise InputError(
                f"{type(self).__name__} has not looked for its videos yet; "
                "call prepare_data() and setup() first."
            )
        return self.splits

    def ready(self) -> "VideoData":
        """Prepare and find the videos, outside of a trainer; return itself."""
        self.prepare_data()
        self.setup()
        return self

    def prepare_data(self) -> None:
        """Fill the cache, if one is asked for. Safe to run side by side."""
        if self._store is not None:
            room = cache.CacheBudget(self._root(), float(self.cache_gib))
            cache.fill(self._store, self._files(), self._decoder(), room, self.num_workers)

    def setup(self, stage: str | None = None) -> None:
        """Find the videos, once."""
        if self.splits is None:
            self.listed = self.videos()
            folds, who = (self.cv_folds, self.cv_fold), type(self).__name__
            self.splits = resampled(self.listed, folds, self.bootstrap, self.seed, who)
            self.augment = self.augment.for_classes(self.splits.classes)

    def train_dataloader(self) -> Any:
        """Load shuffled clips, sampled at random."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> Any:
        """Load the validation clips in order, the same at every call."""
        return self._loader("val", training=False)

    def test_dataloader(self) -> Any:
        """Load the test clips in order, the same at every call."""
        return self._loader("test", False, self.test_views, self.test_crops)

    def cut(self, views: int = 1, crops: int = 1) -> ClipSpec:
        """Say what clips are made of a video."""
        fps = None if self.fps is None else float(self.fps)
        kind = (self.num_frames, self.sampling, self.stride, fps, self.pad, views)
        short_px = self.size_px if self.short_px is None else self.short_px
        return ClipSpec(Sampling(*kind), self.size_px, short_px, crops, self.random_crop)

    def file_reader(self) -> Reader:
        """Return what reads files here: the decoder, its index, and the cache before them."""
        decoder = self._decoder()
        return decoder if self._store is None else Cached(decoder, self._store)

    def _root(self) -> str:
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return self.cache_root or str(Path(cache_home, "regkit", "videos"))

    def _decoder(self) -> Reader:
        # Where this process reads alone, the decoder may use all cores.
        threads = 1 if self.num_workers else 0
        return Indexed(READERS[self.reader](threads), Index(str(Path(self._root(), "index.db"))))

    def _files(self) -> list[str]:
        # All that are listed: equal on every rank, before and after `setup`, and in each fold.
        splits = self.listed or self.videos()
        return [video.path for name in SPLITS for video in getattr(splits, name)]

    @cached_property
    def _store(self) -> Store | None:
        kind, short_px = self.cache, self.cut().short_px
        if kind == "auto":
            room = cache.CacheBudget(self._root(), float(self.cache_gib))
            size = cache.estimate(self._files(), short_px, self._decoder())
            kind = cache.choose(size, room, self.worker_ram_mib * 2**20)
        return None if kind == "none" else Store(self._root(), kind, short_px)

    def _loader(self, split: str, training: bool, views: int = 1, crops: int = 1) -> Any:
        videos, reader = getattr(self.known_splits(), split), self.file_reader()
        mapped = isinstance(reader, Cached) and reader.store.kind == "memmap"
        ram_mib = 0 if mapped else self.worker_ram_mib  # the system keeps mapped pages for all
        cut = self.cut(views, crops)
        dataset = ClipDataset(videos, cut, reader, training, self.seed, ram_mib, self.on_error)
        ranks, rank, done = 1, 0, None
        if self.trainer is not None:
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = EpochSampler(dataset, ranks, rank, shuffle=training, seed=self.seed)
        if training and self.trainer is not None:
            done = self._batches_done
            # A run that continues from the end of an epoch draws its first batches before
            # Lightning sets the epoch, and does not load the loader's state.
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        size = math.ceil(self.batch_size / (views * crops))
        return ClipLoader(
            dataset, sampler, size, self.num_workers, float(self.timeout_s), self.seed, done
        )

    def _batches_done(self) -> int:
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return -1 if progress.is_last_batch else progress.current.processed

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Finish a batch on the device; Lightning calls this."""
        return self.finish(batch, self.trainer is not None and self.trainer.training)

    def finish(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        """Augment (in training), scale and normalise the clips; warn once of each bad file."""
        batch = dict(batch)
        for name in batch.pop("skipped"):
            if name not in self.skipped:
                self.skipped.add(name)
                warnings.warn(f"{type(self).__name__} leaves out {name}", stacklevel=2)
        draws, host_label, clip = batch.pop("draws"), batch.pop("host_label", None), batch["clip"]
        if training:
            given = (clip, batch["label"], draws, self.num_classes, host_label)
            clip, batch["label"] = self.augment(*given)
        clip = functional.to_dtype(clip, torch.float32, scale=True)
        mean, std = (_by_channel(tuple(values), clip.device) for values in (self.mean, self.std))
        clip = (clip - mean) / std
        if self.modality == "difference":
            clip = torch.diff(clip, dim=2, prepend=clip[:, :, :1])
        return {**batch, "clip": clip, "clips_at_once": self.batch_size}

    def all_skipped(self) -> set[str]:
        """Name the bad files that any rank has met; every rank has to ask."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.skipped
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self.skipped)
        return set().union(*gathered)


@lru_cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers of each channel on a device; the host waits for it once, not every batch."""
    return torch.tensor(values, device=device).view(3, 1, 1, 1)
