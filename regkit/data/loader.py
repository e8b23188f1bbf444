"""Loaders of clips: the order of reading, workers that die, epochs that go on in the middle."""

import multiprocessing
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from regkit.data.clips import ClipDataset, Key, collate
from regkit.errors import InputError

_LOST = re.compile("DataLoader worker|DataLoader timed out")  # how torch begins these messages


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
        # joblib's own start method cannot carry a loader's queues
        loky = multiprocessing.get_start_method(allow_none=True) == "loky"
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            timeout=timeout_s if num_workers > 0 else 0,
            multiprocessing_context="fork" if loky and num_workers > 0 else None,
            generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
        )
        dataset.watch(num_workers)
        self._batches_done = batches_done
        self.waited_s = 0.0  # of this process for batches, all in all

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start the epoch now, and hand out its batches."""
        return self._watched(super().__iter__())

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if _LOST.match(str(error)) is None:
                    raise
                raise self._loss(batches, str(error)) from error
            self.waited_s += time.perf_counter() - began
            yield batch

    def _loss(self, batches: Any, reason: str) -> InputError:
        dataset = self.dataset
        assert isinstance(dataset, ClipDataset)
        workers = dict(enumerate(batches._workers))
        dead = {number: worker for number, worker in workers.items() if not worker.is_alive()}
        held = "; ".join(
            f"{dataset.held(number) or 'nothing yet'} (exit code {worker.exitcode})"
            for number, worker in (dead or workers).items()
        )
        return InputError(
            f"A process that reads videos was lost: {reason.splitlines()[0]} It held {held}. "
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
