"""Turn a list of videos into clips, and clips into batches, whatever dies on the way."""

import multiprocessing
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from regkit.data.clip_spec import ClipSpec
from regkit.data.readers import Reader
from regkit.data.timeline import Timeline, VideoError
from regkit.data.video import Video
from regkit.errors import InputError

_TRIES = 10  # substitutes for one unreadable file; ten bad draws in a row mean a wrong path
_NAME_BYTES = 4096  # of the path that a worker holds

Key = tuple[int, int | None]  # (epoch, index); None pads a rank's share of an evaluation
Clip = UInt8[np.ndarray, "clips frames size size 3"]
_GRACE_S, _LOOK_S = 5.0, 1.0  # beyond the timeout of a batch; how often a watch looks
_LOST = re.compile("DataLoader worker|DataLoader timed out")  # how torch begins these messages


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
        timeline = self._memory.get("timeline", video.path)
        if timeline is None:
            timeline = self.reader.timeline(video.path)
            self._memory.keep("timeline", video.path, timeline)
        indices = self.cut.indices(video, timeline, rng)
        clip = self.cut.clip(indices, self._frames(video, np.unique(indices), timeline, rng), rng)
        if rng is None:
            self._memory.keep("clip", video, clip)
        return clip

    def _frames(
        self, video: Video, wanted: np.ndarray, timeline: Timeline, rng: np.random.Generator | None
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


def read_clips(
    video: Video, cut: ClipSpec, reader: Reader, rng: np.random.Generator | None = None
) -> tuple[Clip, Int64[np.ndarray, "views frames"], Timeline]:
    """Read the clips of a video, and say which frames of which timeline they are of.

    Raises: VideoError.
    """
    timeline = reader.timeline(video.path)
    indices = cut.indices(video, timeline, rng)
    frames = reader.frames(video.path, np.unique(indices), cut.short_px, timeline)
    return cut.clip(indices, frames, rng), indices, timeline


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
    files), `draws` (one random number a video, for its augmentation) and `host_label` (the labels
    as numbers, which nobody has to wait for once `label` is on a GPU).
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
        "host_label": [sample["label"] for sample in good],
    }


class EpochSampler(DistributedSampler):
    """Yield (epoch, index), so that workers know the epoch. Lightning calls `set_epoch`.

    Shuffled (training), ranks are filled up by repeats. In order (evaluation), by (epoch, None),
    which `collate` drops: every rank gets as many batches, and no video counts twice.

    done: how many of this rank's share the next walk leaves out; later ones are whole again.
    """

    done = 0

    def __iter__(self) -> Iterator[Key]:
        """Walk this rank's share of the epoch."""
        done, self.done = self.done, 0
        if self.shuffle:
            return iter([(self.epoch, index) for index in super().__iter__()][done:])
        last = len(self.dataset)  # pyright: ignore[reportArgumentType]  # ours is Sized
        places = range(self.rank, self.total_size, self.num_replicas)[done:]
        return ((self.epoch, place if place < last else None) for place in places)


def loader_options(num_workers: int, timeout_s: float, seed: int) -> dict[str, Any]:
    """Return the options that all loaders of clips have in common.

    timeout_s: how long one batch may take.
    """
    # joblib's own start method cannot carry a loader's queues
    loky = multiprocessing.get_start_method(allow_none=True) == "loky"
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "pin_memory": torch.cuda.is_available(),
        "timeout": timeout_s if num_workers > 0 else 0,
        "multiprocessing_context": "fork" if loky and num_workers > 0 else None,
        "generator": torch.Generator().manual_seed(seed),  # else it draws from the global one
    }


class _Wait:
    """Kill workers that are waited for too long; whoever waits learns that they are gone.

    torch's own timeout does not see a worker that stops while it hands its batch over.

    Attributes:
        since: when the wait began; None while nobody waits.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self._workers: Sequence[Any] = ()
        self._thread: threading.Thread | None = None
        self._over = False

    def watch(self, workers: Sequence[Any], patience_s: float) -> None:
        """Watch these workers from here on, in a thread."""
        self._workers = workers
        if workers and self._thread is None:
            self._thread = threading.Thread(target=self._look, args=(patience_s,), daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        self._over, self._workers = True, ()

    def _look(self, patience_s: float) -> None:
        while not self._over:
            since = self.since
            if since is not None and time.perf_counter() - since > patience_s:
                for worker in self._workers:
                    with suppress(ValueError):  # torch has closed it in the meantime
                        worker.kill()
            time.sleep(_LOOK_S)


class ClipLoader(DataLoader):
    """Load batches, name the file when a worker dies, and go on within an epoch.

    batches_done: how many batches of the running epoch were trained on, or -1 when it is over; it
        becomes the state that a checkpoint keeps. Without it there is none.
    timeout_s: how long one batch may take.

    Raises: InputError, in place of a batch, when a worker has died or says nothing any more.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: EpochSampler,
        batch_size: int,
        num_workers: int,
        timeout_s: float,
        seed: int,
        batches_done: Callable[[], int] | None = None,
    ):
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            persistent_workers=num_workers > 0,
            **loader_options(num_workers, timeout_s, seed),
        )
        dataset.watch(num_workers)
        self._batches_done = batches_done
        self.waited_s = 0.0  # of this process for batches, all in all
        self._wait = _Wait()
        weakref.finalize(self, self._wait.end)

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start the epoch now, and hand out its batches."""
        batches = super().__iter__()
        self._wait.watch(getattr(batches, "_workers", ()), self.timeout + _GRACE_S)
        return self._watched(batches)

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = self._wait.since = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if (loss := self.loss_of(error)) is None:
                    raise
                raise loss from error
            finally:
                self._wait.since = None
            self.waited_s += time.perf_counter() - began
            yield batch

    def loss_of(self, error: BaseException) -> InputError | None:
        """Name the file that a lost worker held; None of another error.

        torch tells of a dead worker in the middle of whatever this process does.
        """
        workers = dict(enumerate(getattr(self._iterator, "_workers", ())))
        if _LOST.match(str(error)) is None or not workers:
            return None
        dataset = self.dataset
        assert isinstance(dataset, ClipDataset)
        dead = {number: worker for number, worker in workers.items() if not worker.is_alive()}
        held = "; ".join(
            f"{dataset.held(number) or 'nothing yet'} (exit code {worker.exitcode})"
            for number, worker in (dead or workers).items()
        )
        return InputError(
            f"A process that reads videos was lost: {str(error).splitlines()[0]} It held {held}. "
            "Look at that file with regkit prepare; exit code -9 often means that the "
            "memory was full: take a smaller data.worker_ram_mib or data.num_workers. A file that "
            "takes too long is stopped after data.timeout_s."
        )

    def state_dict(self) -> dict[str, int]:
        """Say how far which epoch is; Lightning keeps this in its checkpoints."""
        if self._batches_done is None:
            return {}
        assert isinstance(self.sampler, EpochSampler)
        done = self._batches_done()
        return {"epoch": self.sampler.epoch + (done < 0), "batches_done": max(0, done)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next walk where the checkpoint was; Lightning calls this before it."""
        assert isinstance(self.sampler, EpochSampler)
        self.sampler.set_epoch(state["epoch"])
        self.sampler.done = state["batches_done"] * (self.batch_size or 1)
