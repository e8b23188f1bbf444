"""Turn a list of videos into clips, and clips into batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import Dataset, get_worker_info

from regkit.data.clip_spec import ClipSpec
from regkit.data.reader import Reader
from regkit.data.timeline import Timeline, VideoError
from regkit.data.video import Video
from regkit.errors import InputError

_TRIES = 10  # substitutes for one unreadable file; ten bad draws in a row mean a wrong path
_NAME_BYTES = 4096  # of the path that a worker holds

Key = tuple[int, int | None]  # (epoch, index); None pads a rank's share of an evaluation
Clip = UInt8[np.ndarray, "clips frames size size 3"]


class _Memory:
    """Keep decoded things until full. It never evicts: under shuffling that only costs hits."""

    def __init__(self, worker_ram_mib: int):
        self._room = worker_ram_mib * 2**20
        self._kept: dict[tuple[str, Any], Any] = {}

    def fits(self, num_bytes: int) -> bool:
        return num_bytes <= self._room

    def get(self, kind: str, key: Any) -> Any:
        return self._kept.get((kind, key))

    def keep(self, kind: str, key: Any, item: Any) -> None:
        if self.fits(item.nbytes):
            self._kept[kind, key] = item
            self._room -= item.nbytes


class ClipDataset(Dataset):
    """Read one clip per video in training, all views of it in evaluation.

    What is random is a function of (seed, epoch, index) alone. A file that cannot be read is
    replaced in training by another of the same split, and left out of evaluation; its name
    travels in `skipped`. Each worker keeps up to `worker_ram_mib` of decoded frames.

    Raises: InputError when `on_error` is "raise", or when one file's substitutes fail as well.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        cut: ClipSpec,
        reader: Reader,
        training: bool,
        seed: int = 0,
        worker_ram_mib: int = 256,
        on_error: str = "skip",
    ):
        self.videos = videos
        self.cut = cut
        self.reader = reader
        self.training = training
        self.seed = seed
        self.on_error = on_error
        self._memory = _Memory(worker_ram_mib)
        self.watch(0)

    def watch(self, num_workers: int) -> None:
        """Make room for the name of the file that each worker holds."""
        self._held = torch.zeros(num_workers, _NAME_BYTES, dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Read the clips that `key` names, or their substitute."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if index is None:
            return self._absent([])
        rng = np.random.default_rng([self.seed, epoch, index])
        skipped = []
        for _ in range(_TRIES if self.training else 1):
            video = self.videos[index]
            self._hold(video.path)
            try:
                clip = self._clip(video, rng if self.training else None)
            except VideoError as error:
                if self.on_error == "raise":
                    raise self._refusal(str(error)) from error
                skipped.append(str(error))
                index = int(rng.integers(len(self)))
                continue
            return sample_of(clip, video, skipped, int(rng.integers(2**63)))
        if self.training:
            raise self._refusal(skipped[0], f", nor {_TRIES - 1} files drawn in its place")
        return self._absent(skipped)

    def held(self, worker: int) -> str:
        """Name the file that a worker reads, or read last."""
        return bytes(self._held[worker].tolist()).rstrip(b"\0").decode(errors="surrogateescape")

    def _hold(self, path: str) -> None:
        worker = get_worker_info()
        if worker is None or worker.id >= len(self._held):
            return
        name = path.encode(errors="surrogateescape")[-_NAME_BYTES:]
        slot = self._held[worker.id]
        slot.zero_()
        slot[: len(name)] = torch.frombuffer(bytearray(name), dtype=torch.uint8)

    def _absent(self, skipped: list[str]) -> dict[str, Any]:
        shape = (self.cut.clips, self.cut.sampling.num_frames, self.cut.size_px, self.cut.size_px)
        sample = sample_of(np.zeros((*shape, 3), dtype=np.uint8), Video("", -1, ""), skipped, 0)
        return {**sample, "path": None}

    def _refusal(self, reason: str, more: str = "") -> InputError:
        return InputError(
            f"ClipDataset could not read {reason}{more}. "
            'Mend or remove it; on_error="skip" goes on without single bad files.'
        )

    def _clip(self, video: Video, rng: np.random.Generator | None) -> Clip:
        if rng is None:  # evaluation asks for the same frames every time
            clip = self._memory.get("clip", video)
            if clip is not None:
                return clip
        timeline = self._timeline(video.path)
        indices = self.cut.indices(video, timeline, rng)
        clip = self.cut.clip(indices, self._frames(video, np.unique(indices), timeline, rng), rng)
        if rng is None:
            self._memory.keep("clip", video, clip)
        return clip

    def _frames(
        self,
        video: Video,
        wanted: np.ndarray,
        timeline: Timeline,
        rng: np.random.Generator | None,
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Read the frames; training keeps whole videos, so that the next epoch reads none."""
        path, short_px = video.path, self.cut.short_px
        whole = self._memory.get("whole", path)
        if whole is not None:
            return whole[wanted]
        sides = sorted((timeline.width_px or 1, timeline.height_px or 1))
        size = len(timeline) * 3 * short_px * round(short_px * sides[1] / sides[0])
        if rng is None or not self._memory.fits(size):
            return self.reader.frames(path, wanted, short_px, timeline)
        whole = self.reader.frames(path, np.arange(len(timeline)), short_px, timeline)
        self._memory.keep("whole", path, whole)
        return whole[wanted]

    def _timeline(self, path: str) -> Timeline:
        timeline = self._memory.get("timeline", path)
        if timeline is None:
            timeline = self.reader.timeline(path)
            self._memory.keep("timeline", path, timeline)
        return timeline


def sample_of(clip: Clip, video: Video, skipped: Sequence[str], draw: int) -> dict[str, Any]:
    """Put together what `collate` takes."""
    return {
        "clip": torch.from_numpy(clip).permute(0, 4, 1, 2, 3),
        "label": video.label,
        "path": video.path,
        "start_s": video.start_s,
        "end_s": video.end_s,
        "skipped": list(skipped),
        "draw": draw,
    }


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join what could be read; the batch is empty, of the right shape, when nothing could.

    Keys: clip (videos * views, 3, frames, size, size), views of one video side by side; label,
    path, start_s, end_s of each video; views, their number; `skipped` ("path: reason" of bad
    files) and `draws` (one random number a video, for its augmentation).
    """
    good = [sample for sample in samples if sample["path"] is not None]
    views, *shape = samples[0]["clip"].shape
    clips = [sample["clip"] for sample in good]
    return {
        # Else they stay as they were decoded, colours last, and the net rounds otherwise.
        "clip": torch.cat(clips).contiguous() if clips else torch.empty((0, *shape)).byte(),
        "label": torch.tensor([sample["label"] for sample in good], dtype=torch.int64),
        "path": [sample["path"] for sample in good],
        "start_s": [sample["start_s"] for sample in good],
        "end_s": [sample["end_s"] for sample in good],
        "views": views,
        "skipped": [name for sample in samples for name in sample["skipped"]],
        "draws": [sample["draw"] for sample in good],
    }
