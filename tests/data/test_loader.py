"""Order, death and resumption of loaders."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from regkit.data.clip_spec import ClipSpec, Sampling
from regkit.data.clips import ClipDataset, ClipLoader, EpochSampler, _Wait
from regkit.data.readers import PyAV
from regkit.data.timeline import Timeline
from regkit.data.video import Video
from regkit.errors import InputError


class Blank(PyAV):
    """Read nothing; die or sleep over files of these names."""

    def timeline(self, source):
        if "deadly" in str(source):
            os.kill(os.getpid(), signal.SIGKILL)
        if "endless" in str(source):
            time.sleep(60)
        return Timeline(np.arange(4), np.ones(4, dtype=bool), True, 0.04, 16, 16)

    def frames(self, source, indices, short_px, timeline):
        return np.zeros((len(indices), short_px, short_px, 3), dtype=np.uint8)


def dataset(names) -> ClipDataset:
    videos = [Video(name, 0, name) for name in names]
    return ClipDataset(videos, ClipSpec(Sampling(2), 8, 8), Blank(), training=True)


def loader(names, workers: int = 0, **options) -> ClipLoader:
    data = dataset(names)
    sampler = EpochSampler(data, 1, 0, seed=3)
    options = {"batch_size": 4, "timeout_s": 60.0, "seed": 0, **options}
    return ClipLoader(data, sampler, num_workers=workers, **options)


def names(count: int) -> list[str]:
    return [f"{number}.mp4" for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_worker_is_reported_with_the_file_it_held(workers):
    batches = loader([*names(3), "folder/deadly ä.mp4"], workers)
    with pytest.raises(InputError, match=r"held folder/deadly ä\.mp4 \(exit code -9\)"):
        list(batches)


def test_a_silent_worker_is_given_up(monkeypatch):
    batches = loader([*names(3), "endless.mp4"], 1, timeout_s=0.5)
    with pytest.raises(InputError, match=r"timed out after 0\.5 seconds.* held endless\.mp4"):
        list(batches)


def test_errors_of_others_pass(monkeypatch):
    batches = loader(names(4))
    monkeypatch.setattr(Blank, "timeline", lambda *_: (_ for _ in ()).throw(RuntimeError("mine")))
    with pytest.raises(RuntimeError, match="mine"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_the_checkpoint_was(workers):
    done = [0]
    whole = loader(names(18), batches_done=lambda: done[0])
    whole.sampler.set_epoch(2)
    all_paths = [batch["path"] for batch in whole]
    done[0] = 2
    state = whole.state_dict()
    resumed = loader(names(18), workers, batches_done=lambda: 0)
    resumed.load_state_dict(state)
    assert len(resumed) == len(whole) == 5
    assert [batch["path"] for batch in resumed] == all_paths[2:]
    resumed.sampler.set_epoch(3)
    assert len([batch["path"] for batch in resumed]) == 5


def test_a_checkpoint_of_a_whole_epoch_leaves_nothing_out():
    """It belongs to the next epoch."""
    whole, next_epoch = (loader(names(18), batches_done=lambda: -1) for _ in range(2))
    whole.sampler.set_epoch(3)
    next_epoch.sampler.set_epoch(4)
    whole.load_state_dict(whole.state_dict())
    assert [b["path"] for b in whole] == [b["path"] for b in next_epoch]


def test_a_loader_of_evaluation_has_no_state():
    assert loader(names(4)).state_dict() == {}


def test_starts_its_workers_at_once():
    """Else reading would begin only when the first batch is asked for."""
    batches = loader(names(8), 1)
    iter(batches)
    assert batches._iterator is not None


@pytest.mark.parametrize(("size", "ranks"), [(7, 1), (7, 2), (8, 4), (5, 4)])
def test_sampler_covers_each_video(size, ranks):
    data = dataset(names(size))

    for epoch in (0, 5):
        for shuffle in (True, False):
            shares = []
            for rank in range(ranks):
                sampler = EpochSampler(data, ranks, rank, shuffle=shuffle)
                sampler.set_epoch(epoch)
                shares.append(list(sampler))
                assert len(shares[-1]) == len(sampler)
            keys = [key for share in shares for key in share]
            assert {epoch} == {key[0] for key in keys}
            real = [index for _, index in keys if index is not None]
            assert set(real) == set(range(size))
            if not shuffle:
                assert len(real) == size


def test_sampler_shuffles_by_seed_and_epoch():
    data = dataset(names(50))

    def order(seed, epoch):
        sampler = EpochSampler(data, 1, 0, seed=seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, 2) == order(0, 2)
    assert order(0, 2) != order(0, 3)
    assert order(0, 2) != order(1, 2)


def test_a_worker_that_is_closed_already_ends_no_watch():
    worker = multiprocessing.Process(target=int)
    worker.start()
    worker.join()
    worker.close()
    wait = _Wait()
    wait.since = time.perf_counter() - 10
    wait.watch([worker], 0.0)
    time.sleep(0.3)
    assert wait._thread is not None
    assert wait._thread.is_alive()
    wait.end()
