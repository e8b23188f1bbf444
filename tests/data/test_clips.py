from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from regkit.data.clips import ClipDataset, EpochSampler, collate
from regkit.data.decode import read_frames
from regkit.data.sampling import dense, uniform
from regkit.data.video import Video
from regkit.errors import InputError


@pytest.fixture
def videos(write):
    paths = [write(f"{number}.mp4", num_frames=12 + number, g="5") for number in range(6)]
    return [Video(str(path), number % 2, str(number)) for number, path in enumerate(paths)]


def dataset(videos, training=True, **options):
    options = {"num_frames": 4, "size_px": 16, "sampling": uniform, **options}
    return ClipDataset(videos, training=training, **options)


def spoil(video: Video) -> None:
    with open(video.path, "wb") as file:
        file.write(b"no video")


def test_clip_holds_the_sampled_frames(videos):
    sample = dataset(videos, training=False)[2]
    assert sample["clip"].shape == (3, 4, 16, 16)
    assert sample["clip"].dtype == torch.uint8
    assert (sample["label"], sample["path"], sample["skipped"]) == (0, videos[2].path, [])
    frames = read_frames(videos[2].path, uniform(14, 4), 16)
    np.testing.assert_array_equal(sample["clip"].permute(1, 2, 3, 0).numpy(), frames)


@pytest.mark.parametrize("sampling", [uniform, partial(dense, stride=2)])
def test_clip_is_a_function_of_seed_epoch_and_index(videos, sampling):
    """Neither the cache, nor the order of reading, nor the global generators matter."""
    cached = dataset(videos, sampling=sampling, seed=3)
    keys = [(epoch, index) for epoch in range(3) for index in range(6)]
    first = {key: cached[key] for key in keys}
    torch.manual_seed(99)
    np.random.seed(99)
    fresh = dataset(videos, sampling=sampling, seed=3, cache_mib=0)
    for key in reversed(keys):
        assert torch.equal(fresh[key]["clip"], first[key]["clip"])
        assert fresh[key]["draw"] == first[key]["draw"]
    assert len({sample["draw"] for sample in first.values()}) == len(keys)
    other = dataset(videos, sampling=sampling, seed=4)
    assert any(not torch.equal(other[key]["clip"], first[key]["clip"]) for key in keys)
    assert any(
        not torch.equal(first[0, index]["clip"], first[1, index]["clip"]) for index in range(6)
    )


def test_evaluation_is_the_same_in_every_epoch(videos):
    data = dataset(videos, training=False)
    assert torch.equal(data[0, 3]["clip"], data[7, 3]["clip"])


def test_cache_saves_reading_and_keeps_its_bound(videos, monkeypatch):
    reads = []

    def counted(*arguments):
        reads.append(arguments[0])
        return read_frames(*arguments)

    monkeypatch.setattr("regkit.data.clips.read_frames", counted)
    for data in (dataset(videos), dataset(videos, training=False)):
        reads.clear()
        for epoch in range(3):
            for index in range(6):
                data[epoch, index]
        assert len(reads) == 6
    tight = dataset(videos, size_px=128, cache_mib=1)  # 1.3 videos of 16 frames fit
    reads.clear()
    for epoch in range(2):
        for index in range(6):
            tight[epoch, index]
    assert len(reads) == 11


def test_training_replaces_a_bad_file(videos):
    spoil(videos[1])
    data = dataset(videos)
    sample = data[0, 1]
    assert sample["path"] != videos[1].path
    assert sample["label"] == next(v.label for v in videos if v.path == sample["path"])
    assert all(videos[1].path in name for name in sample["skipped"])
    assert sample["path"] == dataset(videos, cache_mib=0)[0, 1]["path"]
    assert len({data[epoch, 1]["path"] for epoch in range(20)}) > 2


def test_training_gives_up_and_names_the_first_bad_file(videos):
    for video in videos:
        spoil(video)
    with pytest.raises(InputError, match=r"could not read .*3\.mp4: InvalidDataError.*nor 9 files"):
        dataset(videos)[0, 3]


def test_raise_stops_at_the_first_bad_file(videos):
    spoil(videos[0])
    loader = DataLoader(dataset(videos, on_error="raise"), num_workers=1, collate_fn=collate)
    with pytest.raises(InputError, match=r"0\.mp4"):
        next(iter(loader))


def test_evaluation_drops_a_bad_file(videos):
    spoil(videos[1])
    data = dataset(videos, training=False)
    batch = collate([data[0, index] for index in range(3)])
    assert batch["clip"].shape == (2, 3, 4, 16, 16)
    assert batch["label"].tolist() == [0, 0]
    assert batch["path"] == [videos[0].path, videos[2].path]
    assert len(batch["skipped"]) == 1
    assert batch["skipped"][0].startswith(videos[1].path)


def test_batch_of_nothing_keeps_its_shape(videos):
    spoil(videos[1])
    data = dataset(videos, training=False)
    batch = collate([data[0, 1], data[0, None]])
    assert batch["clip"].shape == (0, 3, 4, 16, 16)
    assert batch["clip"].dtype == torch.uint8
    assert batch["label"].shape == (0,)
    assert batch["label"].dtype == torch.int64
    assert batch["path"] == []
    assert len(batch["skipped"]) == 1


@pytest.mark.parametrize(("size", "ranks"), [(7, 1), (7, 2), (8, 4), (5, 4)])
def test_sampler_covers_each_video(size, ranks):
    videos = [Video(str(number), 0, "") for number in range(size)]
    data = dataset(videos)
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
    data = dataset([Video(str(number), 0, "") for number in range(50)])

    def order(seed, epoch):
        sampler = EpochSampler(data, 1, 0, seed=seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, 2) == order(0, 2)
    assert order(0, 2) != order(0, 3)
    assert order(0, 2) != order(1, 2)
