import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from regkit.data.clip_spec import ClipSpec, Sampling, uniform
from regkit.data.clips import ClipDataset, collate
from regkit.data.decode import read_frames
from regkit.data.readers import PyAV
from regkit.data.video import Video
from regkit.errors import InputError


@pytest.fixture
def videos(write):
    paths = [write(f"{number}.mp4", num_frames=12 + number, g="5") for number in range(6)]
    return [Video(str(path), number % 2, str(number)) for number, path in enumerate(paths)]


def dataset(videos, training=True, size_px=16, **options):
    cut = options.pop("cut", ClipSpec(Sampling(4), size_px, size_px))
    return ClipDataset(videos, cut, PyAV(), training=training, **options)


def spoil(video: Video) -> None:
    with open(video.path, "wb") as file:
        file.write(b"no video")


def test_clip_holds_the_sampled_frames(videos):
    sample = dataset(videos, training=False)[2]
    assert sample["clip"].shape == (1, 3, 4, 16, 16)
    assert sample["clip"].dtype == torch.uint8
    assert (sample["label"], sample["path"], sample["skipped"]) == (0, videos[2].path, [])
    frames = read_frames(videos[2].path, uniform(14, 4), 16)
    middle = (frames.shape[2] - 16) // 2
    np.testing.assert_array_equal(
        sample["clip"][0].permute(1, 2, 3, 0).numpy(), frames[:, :, middle : middle + 16]
    )


CUTS = [
    ClipSpec(Sampling(4), 16, 16),
    ClipSpec(Sampling(4, "dense", stride=2), 16, 16),
    ClipSpec(Sampling(4, "dense", fps=10.0), 16, 20, random_crop=True),
]


@pytest.mark.parametrize("cut", CUTS)
def test_clip_is_a_function_of_seed_epoch_and_index(videos, cut):
    """Neither the cache, nor the order of reading, nor the global generators matter."""
    cached = dataset(videos, cut=cut, seed=3)
    keys = [(epoch, index) for epoch in range(3) for index in range(6)]
    first = {key: cached[key] for key in keys}
    torch.manual_seed(99)
    np.random.seed(99)
    fresh = dataset(videos, cut=cut, seed=3, worker_ram_mib=0)
    for key in reversed(keys):
        assert torch.equal(fresh[key]["clip"], first[key]["clip"])
        assert fresh[key]["draw"] == first[key]["draw"]
    assert len({sample["draw"] for sample in first.values()}) == len(keys)
    other = dataset(videos, cut=cut, seed=4)
    assert any(not torch.equal(other[key]["clip"], first[key]["clip"]) for key in keys)
    assert any(
        not torch.equal(first[0, index]["clip"], first[1, index]["clip"]) for index in range(6)
    )


def test_evaluation_is_the_same_in_every_epoch(videos):
    data = dataset(videos, training=False)
    assert torch.equal(data[0, 3]["clip"], data[7, 3]["clip"])


def test_cache_saves_reading_and_keeps_its_bound(videos, monkeypatch):
    reads = []

    def counted(self, path, *arguments):
        reads.append(path)
        return read_frames(path, *arguments)

    monkeypatch.setattr(PyAV, "frames", counted)
    for data in (dataset(videos), dataset(videos, training=False)):
        reads.clear()
        for epoch in range(3):
            for index in range(6):
                data[epoch, index]
        assert len(reads) == 6
    tight = dataset(videos, size_px=128, worker_ram_mib=1)  # one video fits
    reads.clear()
    for epoch in range(2):
        for index in range(6):
            tight[epoch, index]
    assert len(reads) == 11
    tight = dataset(videos, training=False, size_px=128, worker_ram_mib=1)  # 5 of 6 clips fit
    reads.clear()
    for epoch in range(2):
        for index in range(6):
            tight[epoch, index]
    assert len(reads) == 7


def test_training_replaces_a_bad_file(videos):
    spoil(videos[1])
    data = dataset(videos)
    sample = data[0, 1]
    assert sample["path"] != videos[1].path
    assert sample["label"] == next(v.label for v in videos if v.path == sample["path"])
    assert all(videos[1].path in name for name in sample["skipped"])
    assert sample["path"] == dataset(videos, worker_ram_mib=0)[0, 1]["path"]
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
    assert batch["clip"].is_contiguous()
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
