"""Turn a list of videos into clips, and clips into batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch.utils.data import Dataset, DistributedSampler

from regkit.data.decode import Timeline, VideoError, read_frames, read_timeline
from regkit.data.video import Video
from regkit.errors import InputError

_TRIES = 10  # substitutes for one unreadable file; ten bad draws in a row mean a wrong path

Key = tuple[int, int | None]  # (epoch, index); None pads a rank's share of an evaluation
Sampling = Callable[..., Int64[np.ndarray, " frames"]]  # as in `sampling`


class _Memory:
    """Keep decoded things until full. It never evicts: under shuffling that only costs hits."""

    def __init__(self, cache_mib: int):
        self._room = cache_mib * 2**20
        self._kept: dict[tuple[str, str], Any] = {}

    def fits(self, num_bytes: int) -> bool:
        return num_bytes <= self._room

    def get(self, kind: str, path: str) -> Any:
        return self._kept.get((kind, path))

    def keep(self, kind: str, path: str, item: Any) -> None:
        if self.fits(item.nbytes):
            self._kept[kind, path] = item
            self._room -= item.nbytes


class ClipDataset(Dataset):
    """Read one clip per video. What is random is a function of (seed, epoch, index) alone.

    A file that cannot be read is replaced in training by another of the same split, and left out
    of evaluation; its name travels in `skipped`. Each worker keeps up to `cache_mib` of decoded
    frames.

    Raises: InputError when `on_error` is "raise", or when one file's substitutes fail as well.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        num_frames: int,
        size_px: int,
        sampling: Sampling,
        training: bool,
        seed: int = 0,
        cache_mib: int = 256,
        on_error: str = "skip",
    ):
        self.videos = videos
        self.num_frames = num_frames
        self.size_px = size_px
        self.sampling = sampling
        self.training = training
        self.seed = seed
        self.on_error = on_error
        self._memory = _Memory(cache_mib)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Read the clip that `key` names, or its substitute."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if index is None:
            return self._absent([])
        rng = np.random.default_rng([self.seed, epoch, index])
        skipped = []
        for _ in range(_TRIES if self.training else 1):
            video = self.videos[index]
            try:
                clip = self._clip(video.path, rng if self.training else None)
            except VideoError as error:
                if self.on_error == "raise":
                    raise self._refusal(str(error)) from error
                skipped.append(str(error))
                index = int(rng.integers(len(self)))
                continue
            return {
                "clip": torch.from_numpy(clip).permute(3, 0, 1, 2),
                "label": video.label,
                "path": video.path,
                "skipped": skipped,
                "draw": int(rng.integers(2**63)),
            }
        if self.training:
            raise self._refusal(skipped[0], f", nor {_TRIES - 1} files drawn in its place")
        return self._absent(skipped)

    def _absent(self, skipped: list[str]) -> dict[str, Any]:
        shape = (3, self.num_frames, self.size_px, self.size_px)
        clip = torch.zeros(shape, dtype=torch.uint8)
        return {"clip": clip, "label": -1, "path": None, "skipped": skipped, "draw": 0}

    def _refusal(self, reason: str, more: str = "") -> InputError:
        return InputError(
            f"ClipDataset could not read {reason}{more}. "
            'Mend or remove it; on_error="skip" goes on without single bad files.'
        )

    def _clip(
        self, path: str, rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "frames size size 3"]:
        timeline = self._timeline(path)
        indices = self.sampling(len(timeline), self.num_frames, rng=rng)
        if rng is None:  # evaluation asks for the same frames every time
            clip = self._memory.get("clip", path)
            if clip is None:
                clip = read_frames(path, indices, self.size_px, timeline)
                self._memory.keep("clip", path, clip)
            return clip
        whole = self._memory.get("whole", path)
        if whole is None:
            if not self._memory.fits(len(timeline) * self.size_px**2 * 3):
                return read_frames(path, indices, self.size_px, timeline)
            whole = read_frames(path, np.arange(len(timeline)), self.size_px, timeline)
            self._memory.keep("whole", path, whole)
        return whole[indices]

    def _timeline(self, path: str) -> Timeline:
        timeline = self._memory.get("timeline", path)
        if timeline is None:
            timeline = read_timeline(path)
            self._memory.keep("timeline", path, timeline)
        return timeline


class EpochSampler(DistributedSampler):
    """Yield (epoch, index), so that workers know the epoch. Lightning calls `set_epoch`.

    Shuffled (training), ranks are filled up by repeats. In order (evaluation), by (epoch, None),
    which `collate` drops: every rank gets as many batches, and no video counts twice.
    """

    def __iter__(self) -> Iterator[Key]:
        """Walk this rank's share of the epoch."""
        if self.shuffle:
            return ((self.epoch, index) for index in super().__iter__())
        last = len(self.dataset)  # pyright: ignore[reportArgumentType]  # ours is Sized
        places = range(self.rank, self.total_size, self.num_replicas)
        return ((self.epoch, place if place < last else None) for place in places)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack what could be read; the batch is empty, of the right shape, when nothing could.

    Keys: clip, label, path; `skipped` ("path: reason" of bad files) and `draws` (one random number
    a clip, for its augmentation).
    """
    good = [sample for sample in samples if sample["path"] is not None]
    shape = samples[0]["clip"].shape
    clips = [sample["clip"] for sample in good]
    return {
        "clip": torch.stack(clips) if clips else torch.empty((0, *shape), dtype=torch.uint8),
        "label": torch.tensor([sample["label"] for sample in good], dtype=torch.int64),
        "path": [sample["path"] for sample in good],
        "skipped": [name for sample in samples for name in sample["skipped"]],
        "draws": [sample["draw"] for sample in good],
    }
