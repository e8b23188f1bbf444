"""Shards and their stream: nothing lost, nothing twice, the same clips as from files."""

import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from regkit.data.clips import ClipDataset, collate
from regkit.data.readers import PyAV
from regkit.data.shards import write_shards
from regkit.data.streamed import ShardedData
from regkit.data.video import Splits, Video
from regkit.errors import InputError

litdata = pytest.importorskip("litdata", reason='streaming needs pip install "regkit[stream]"')

CLASSES = ["left", "right", "üp"]
NUM_TRAIN, NUM_VAL = 37, 11


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Splits:
    """Write a few small videos; the lists name parts of them, as if they were many."""
    av = pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("videos")
    paths = []
    for name in range(NUM_TRAIN + NUM_VAL):
        path = folder / f"{CLASSES[name % 3]}" / f"v {name}.mp4"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for number in range(6):
                picture = np.full((32, 32, 3), 5 * name + number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        paths.append(str(path))
    videos = [
        Video(path, number % 3, f"g{number}", 0.04 * (number % 2), None if number % 5 else 0.2)
        for number, path in enumerate(paths)
    ]
    # Sorted by class, as folders list them.
    train = sorted(videos[:NUM_TRAIN], key=lambda video: video.label)
    return Splits(train, videos[NUM_TRAIN:], videos[NUM_TRAIN:], CLASSES)


@pytest.fixture(scope="module")
def root(files, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_shards(files, folder, num_workers=2, chunk_mib=0.01)
    return str(folder)


def streamed(root: str, **options) -> ShardedData:
    options = {"size_px": 16, "num_frames": 2, "batch_size": 4, "num_workers": 0, **options}
    data = ShardedData(root=root, **options)
    data.prepare_data()
    data.setup()
    return data


def same(one: dict, other: dict) -> bool:
    assert torch.equal(one["clip"], other["clip"])
    assert torch.equal(one["label"], other["label"])
    rest = [{key: batch[key] for key in {*batch} - {"clip", "label"}} for batch in (one, other)]
    return rest[0] == rest[1]


def paths(batches) -> list[str]:
    return [path for batch in batches for path in batch["path"]]


def test_shards_hold_the_files_and_the_lists(root, files):
    found = streamed(root).known_splits()
    assert found.classes == CLASSES
    for name in ("train", "val", "test"):
        listed, stored = getattr(found, name), litdata.StreamingDataset(f"{root}/{name}")
        assert Counter(listed) == Counter(getattr(files, name))
        assert len(stored) == len(listed)
        for number, video in enumerate(listed):
            item = stored[number]
            assert item["number"] == number
            assert bytes(item["video"]) == Path(video.path).read_bytes()
            about = [video.path, video.label, video.group, video.start_s, video.end_s]
            assert json.loads(bytes(item["about"])) == about
    assert len(list(Path(root, "train").glob("*.bin"))) > 3
    assert sorted(path.name for path in Path(root).parent.iterdir()) == ["set"]
    assert Path(root).stat().st_mode & 0o777 == 0o755


def test_shards_mix_the_classes(root):
    labels = [video.label for video in streamed(root).known_splits().train]
    changes = sum(one != two for one, two in itertools.pairwise(labels))
    assert changes > 12  # of 36; sorted it would be 2


def test_a_folder_in_use_is_refused(files, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").touch()
    with pytest.raises(InputError, match="which is not empty; give another"):
        write_shards(files, tmp_path / "used")
    for wrong in ({"chunk_mib": 0}, {"num_workers": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            write_shards(files, tmp_path / "new", **wrong)
    (tmp_path / "new").mkdir()
    write_shards(files, tmp_path / "new")
    assert paths(streamed(str(tmp_path / "new")).val_dataloader())


def test_a_missing_file_leaves_no_half_written_folder(files, tmp_path):
    gone = Splits([*files.train, Video("gone.mp4", 0, "g")], files.val, files.test, CLASSES)
    with pytest.raises(InputError, match=r"gone\.mp4 \(No such file"):
        write_shards(gone, tmp_path / "set")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_the_batches_that_files_give(root, workers):
    data = streamed(root, num_workers=workers, test_views=2)
    videos = data.known_splits().test
    dataset = ClipDataset(videos, data.cut(views=2), PyAV(), training=False)
    place = {video.path: number for number, video in enumerate(videos)}
    orders = []
    for _ in range(2):  # each time a new loader, whose first epoch is 1
        batches = list(data.test_dataloader())
        assert len(batches) == len(data.test_dataloader()) == 6  # of two videos of two views
        for batch in batches:
            expected = collate([dataset[1, place[path]] for path in batch["path"]])
            assert same(batch, expected)
        orders.append(paths(batches))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(place)
    assert workers or orders[0] == list(place)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_gives_the_clips_that_files_give(root, workers):
    data = streamed(root, num_workers=workers, seed=5)
    videos = data.known_splits().train
    dataset = ClipDataset(videos, data.cut(), PyAV(), training=True, seed=5)
    loader, orders = data.train_dataloader(), []
    for epoch in (1, 2):
        batches = list(loader)
        assert len(batches) == len(loader)
        place = {video.path: number for number, video in enumerate(videos)}
        for batch in batches:
            expected = collate([dataset[epoch, place[path]] for path in batch["path"]])
            assert same(batch, expected)
        orders.append(paths(batches))
        assert sorted(orders[-1]) == sorted(place)
    assert orders[0] != orders[1]
    assert paths(streamed(root, num_workers=workers, seed=5).train_dataloader()) == orders[0]
    assert paths(streamed(root, num_workers=workers, seed=6).train_dataloader()) != orders[0]


class Witness(pl.LightningModule):
    """Note what it was trained on; fail at a step, as a killed run does."""

    def __init__(self, dies_after: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[str], Tensor]] = []
        self.dies_after = dies_after

    def training_step(self, batch, number):
        if len(self.seen) == self.dies_after:
            raise KeyboardInterrupt("killed")
        self.seen.append((self.current_epoch, batch["path"], batch["clip"].clone()))
        return (self.weight - batch["clip"].mean()) ** 2

    def validation_step(self, batch, number):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: str, folder: Path, witness: Witness, resume: Path | None = None, **options) -> None:
    workers = options.pop("workers", 0)
    every = options.pop("every", None)
    data = streamed(root, num_workers=workers)
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[keep],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    try:
        trainer.fit(witness, data, ckpt_path=resume, weights_only=resume is not None)
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        assert witness.dies_after is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "step", "options"),
    [
        (0, 4, {}),  # in epoch 0, of 10 batches
        (2, 5, {"limit_val_batches": 0}),
        (0, 13, {"val_check_interval": 5}),  # in epoch 1
        (0, 10, {}),  # at the end of an epoch
        (0, 6, {"limit_train_batches": 6}),  # at the end of a shortened one
    ],
)
def test_a_killed_run_goes_on_with_the_very_next_batch(root, tmp_path, workers, step, options):
    options = {"workers": workers, "limit_val_batches": 1, **options}
    whole, killed, resumed = Witness(), Witness(dies_after=step + 2), Witness()
    fit(root, tmp_path / "whole", whole, **options)
    fit(root, tmp_path / "killed", killed, every=step, **options)
    assert len(killed.seen) == step + 2
    fit(root, tmp_path / "more", resumed, tmp_path / "killed" / f"step={step}.ckpt", **options)
    expected = whole.seen[step:]
    assert [one[:2] for one in resumed.seen] == [one[:2] for one in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(resumed.seen, expected, strict=True))
    assert resumed.weight == whole.weight
    if not options.get("limit_train_batches"):
        for epoch in range(2):
            names = [path for at, some, _ in whole.seen if at == epoch for path in some]
            assert len(set(names)) == len(names) == NUM_TRAIN


def test_a_checkpoint_of_another_seed_is_refused(root):
    loader = streamed(root, seed=1).train_dataloader()
    next(iter(loader))
    with pytest.raises(InputError, match="seed=1"):
        streamed(root, seed=2).train_dataloader().load_state_dict(loader.state_dict())


def test_shards_may_move_within_an_epoch(root, tmp_path):
    loader = streamed(root).train_dataloader()
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    shutil.copytree(root, tmp_path / "moved")
    moved = streamed(str(tmp_path / "moved")).train_dataloader()
    moved.load_state_dict(state)
    assert paths(moved) == paths(batches)


@pytest.fixture
def damaged(files, tmp_path) -> str:
    """Write shards of which two files, one for training and one for evaluation, are cut."""
    whole = {"train": list(files.train), "val": list(files.val)}
    for name, videos in whole.items():
        path = tmp_path / f"bad {name}.mp4"
        path.write_bytes(Path(videos[3].path).read_bytes()[:200])
        videos[3] = Video(str(path), videos[3].label, "g")
    splits = Splits(whole["train"], whole["val"], files.test, CLASSES)
    write_shards(splits, tmp_path / "set", chunk_mib=0.0001)  # less than one file
    return str(tmp_path / "set")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_replaced_or_left_out_and_named(damaged, workers):
    data = streamed(damaged, num_workers=workers)
    batches = list(data.train_dataloader())
    skipped = [name for batch in batches for name in batch["skipped"]]
    assert len(skipped) == 1
    assert "bad train.mp4: InvalidDataError" in skipped[0]
    assert sum(len(batch["path"]) for batch in batches) == NUM_TRAIN
    good = {video.path for video in data.known_splits().train if "bad" not in video.path}
    assert set(paths(batches)) == good  # one of them stands in
    assert paths(streamed(damaged).train_dataloader()) == paths(batches) or workers
    named = next(batch for batch in batches if batch["skipped"])
    with pytest.warns(UserWarning, match=r"leaves out .*bad train\.mp4"):
        data.finish(named, training=True)
    seen = paths(data.val_dataloader())
    assert len(seen) == NUM_VAL - 1
    with pytest.raises(InputError, match=r"bad val\.mp4"):
        list(streamed(damaged, num_workers=workers, on_error="raise").val_dataloader())


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share(root, monkeypatch, ranks):
    evaluated, trained = [], []
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    data = streamed(root)
    for rank in range(ranks):
        monkeypatch.setenv("GLOBAL_RANK", str(rank))
        evaluated += paths(data.val_dataloader())
        loader = data.train_dataloader()
        trained.append(paths(loader))
        assert len(trained[-1]) == 4 * len(loader)
    assert sorted(evaluated) == sorted(video.path for video in data.known_splits().val)
    assert len({len(share) for share in trained}) == 1
    together = [path for share in trained for path in share]
    assert len(set(together)) == len(together) > NUM_TRAIN - 4 * ranks


def test_shards_of_a_store_are_kept_nearby(root, tmp_path):
    # litdata takes local: for a store, from which it copies.
    before = sorted(Path(root).rglob("*"))
    data = streamed(f"local:{root}", cache_root=str(tmp_path), cache_gib=30)
    assert sorted(paths(data.train_dataloader())) == sorted(
        video.path for video in data.known_splits().train
    )
    assert list((tmp_path / "shards").rglob("chunk-*.bin"))
    assert sorted(Path(root).rglob("*")) == before


def test_wrong_input_is_refused(root, files, tmp_path):
    with pytest.raises(InputError, match=r"root='.*nowhere'"):
        streamed(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="--shards"):
        streamed(str(tmp_path))
    with pytest.raises(InputError, match="cache='memmap'"):
        streamed(root, cache="memmap")
    with pytest.raises(InputError, match="seed="):
        streamed(root, seed=2**32)
    write_shards(Splits(files.train, [], files.test, CLASSES), tmp_path / "set")
    with pytest.raises(InputError, match="no val videos"):
        streamed(str(tmp_path / "set")).val_dataloader()


def test_the_missing_package_is_named(root, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(InputError, match=r"regkit\[stream\]"):
        streamed(root)
    with pytest.raises(InputError, match=r"regkit\[stream\]"):
        write_shards(files, tmp_path / "set")


class _Touch:
    """What unpickling runs."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.mark.parametrize("split", ["index", "train"])
def test_a_strangers_pickle_is_not_read(root, tmp_path, split):
    """litdata itself would unpickle it, as the last lines show."""
    strange, mark = tmp_path / "strange", tmp_path / "mark"
    shutil.copytree(root, strange)
    shutil.rmtree(strange / split)
    writer = litdata.streaming.writer.BinaryWriter(str(strange / split), chunk_bytes=10**6)
    writer[0] = {"number": 0, "video": b"", "about": _Touch(str(mark)), "splits": b""}
    writer.done()
    writer.merge()
    assert "pickle" in (strange / split / "index.json").read_text()
    with pytest.raises(InputError, match=r"index\.json names 'pickle'"):
        next(iter(ShardedData(root=str(strange), num_workers=0).ready().train_dataloader()))
    assert not mark.exists()
    assert litdata.StreamingDataset(str(strange / split))[0]
    assert mark.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("filename", "../chunk.bin"),
        ("compression", "zstd"),
        ("encryption", "x"),
        (
            "data_spec",
            '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": "this"},'
            ' "children_spec": []}]',
        ),
    ],
)
def test_an_index_names_shards_of_its_own_alone(root, tmp_path, key, value):
    strange = tmp_path / "strange"
    shutil.copytree(root, strange)
    file = strange / "index" / "index.json"
    index = json.loads(file.read_text())
    (index["chunks"][0] if key == "filename" else index["config"])[key] = value
    file.write_text(json.dumps(index))
    with pytest.raises(InputError, match="names '"):
        ShardedData(root=str(strange)).ready()
