"""Folds to choose by and bootstrap samples: whole groups, and nobody in the test split."""

import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from spoil import write

from regkit.data.folder import Folder
from regkit.data.made import SyntheticMotion
from regkit.data.streamed import ShardedData
from regkit.data.video import Splits, Video, bootstrapped, with_fold
from regkit.errors import InputError
from regkit.lightning.predictions import Predictions
from regkit.lightning.video_classifier import VideoClassifier
from regkit.models.tiny3d import Tiny3D


def some(split: str, groups: dict[str, int], num_classes: int = 3) -> list[Video]:
    """List so many videos of each group, the classes in turn."""
    sizes = [(group, number) for group, size in groups.items() for number in range(size)]
    return [
        Video(f"/{split}/{group}/{number}", place % num_classes, group)
        for place, (group, number) in enumerate(sizes)
    ]


def of_persons(num_groups: int = 12, size: int = 6) -> Splits:
    """Give persons, of whom p0 and p1 are in training and in validation both."""
    train = some("train", {f"p{n}": size for n in range(num_groups)})
    val = some("val", {"p0": 3, "p1": 3, "q0": 6, "q1": 6})
    return Splits(train, val, some("test", {"t0": 9}), ["a", "b", "c"])


def groups(videos: list[Video]) -> set[str]:
    return {video.group for video in videos}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("made"))


def made(root: str, **options) -> SyntheticMotion:
    options = {"num_train": 12, "num_val": 7, "num_test": 6, "video_px": 16, **options}
    options = {"size_px": 16, "num_frames": 4, "batch_size": 4, "num_workers": 0, **options}
    data = SyntheticMotion(root=root, **options)
    data.prepare_data()
    data.setup()
    return data


def test_each_video_is_held_out_once_and_with_its_group():
    splits = of_persons()
    pool = splits.train + splits.val
    held = []
    for fold in range(1, 6):
        dealt = with_fold(splits, 5, fold, 0, "SyntheticMotion")
        assert Counter(dealt.train + dealt.val) == Counter(pool)
        assert not groups(dealt.train) & groups(dealt.val)
        assert dealt.test == splits.test
        assert 12 <= len(dealt.val) <= 24  # 84 videos in groups of 6 and 9
        held += dealt.val
    assert Counter(held) == Counter(pool)


def test_the_last_fit_takes_all():
    splits = of_persons()
    whole = with_fold(splits, 5, 0, 0, "SyntheticMotion")
    assert whole.train == splits.train + splits.val
    assert whole.val == []
    assert whole.test == splits.test


def test_folds_hold_each_class_alike(root):
    for fold in (1, 2, 3):
        data = made(root, num_train=24, num_val=12, cv_folds=3, cv_fold=fold).known_splits()
        assert Counter(video.label for video in data.val) == dict.fromkeys(range(6), 2)
        assert Counter(video.label for video in data.train) == dict.fromkeys(range(6), 4)


def test_folds_follow_from_the_seed_of_the_data():
    splits = of_persons()
    vals = [groups(with_fold(splits, 5, 1, seed, "SyntheticMotion").val) for seed in range(6)]
    assert len(set(map(frozenset, vals))) > 1
    assert vals[3] == groups(with_fold(splits, 5, 1, 3, "SyntheticMotion").val)


def test_nested_cross_validation(tmp_path):
    for person in range(8):
        for label in ("run", "jump"):
            write(tmp_path / label / f"S{person}_{label}.mp4")
    folder = partial(Folder, root=str(tmp_path), group=r"(S\d)_", num_folds=4)
    tested = []
    for fold in (1, 2, 3, 4):
        validated, tests = [], set()
        for cv_fold in (1, 2, 3):
            data = folder(fold=fold, cv_folds=3, cv_fold=cv_fold)
            data.setup()
            splits = data.known_splits()
            parts = [groups(part) for part in (splits.train, splits.val, splits.test)]
            assert sum(map(len, parts)) == len(set().union(*parts)) == 8
            validated += splits.val
            tests.add(tuple(splits.test))
        (test,) = tests
        assert len(validated) == len(set(validated)) == 16 - len(test)
        tested += test
    assert len(tested) == len(set(tested)) == 16


def test_bootstrap_draws_as_many_groups_as_there_are():
    splits = of_persons(num_groups=30)
    size = Counter(video.group for video in splits.train)
    times = Counter()
    for seed in range(400):
        drawn = bootstrapped(splits, seed, "SyntheticMotion")
        count = Counter(drawn.train)
        for group, members in size.items():
            # Whole groups: each video as often as its neighbours.
            assert len({count[v] for v in splits.train if v.group == group}) == 1
            times[group] += sum(count[v] for v in splits.train if v.group == group) / members
        assert len(drawn.train) == len(splits.train)  # equal groups
        assert (drawn.val, drawn.test, drawn.classes) == (splits.val, splits.test, splits.classes)
        assert sorted(drawn.train, key=splits.train.index) == drawn.train
    # Each group is drawn once on average (sd of 400 binomial counts: 0.05).
    assert all(abs(times[group] / 400 - 1) < 0.2 for group in size)


def test_bootstrap_leaves_out_a_share_of_one_over_e():
    splits = Splits(some("train", {f"v{n}": 1 for n in range(300)}), [], [], ["a", "b", "c"])
    shares = [
        len(set(bootstrapped(splits, seed, "SyntheticMotion").train)) / 300 for seed in range(100)
    ]
    assert np.mean(shares) == pytest.approx(1 - (1 - 1 / 300) ** 300, abs=0.005)
    assert (
        len({tuple(bootstrapped(splits, seed, "SyntheticMotion").train) for seed in range(100)})
        == 100
    )


def test_the_draw_follows_from_the_names_alone():
    """So all ranks and processes draw alike, whatever their seed of hashes."""
    names = ["p0", "p1", "p10", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"]
    chosen = [names[place] for place in np.random.default_rng(5).integers(11, size=11)]
    splits = of_persons(num_groups=11, size=1)
    drawn = bootstrapped(splits, 5, "SyntheticMotion").train
    assert Counter(video.group for video in drawn) == Counter(chosen)
    backwards = Splits(splits.train[::-1], splits.val, splits.test, splits.classes)
    assert bootstrapped(backwards, 5, "SyntheticMotion").train == drawn[::-1]
    dealt, again = (with_fold(one, 4, 1, 0, "SyntheticMotion") for one in (splits, backwards))
    assert groups(dealt.val) == groups(again.val)


@pytest.mark.filterwarnings("ignore:SyntheticMotion. bootstrap=")
def test_a_video_that_is_drawn_twice_gives_two_clips(root):
    data = made(root, bootstrap=1, batch_size=12, sampling="dense", video_frames=16)
    videos = data.known_splits().train
    assert len(videos) == 12 > len(set(videos))
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["path"]) == sorted(video.path for video in videos)
    assert len(set(batch["draws"])) == 12
    assert len({clip.numpy().tobytes() for clip in batch["clip"]}) > len(set(videos))


def test_without_these_options_nothing_is_changed(root):
    data = made(root)
    assert data.known_splits() == data.videos()
    assert data.known_splits() is data.listed
    whole = made(root, cv_folds=3, cv_fold=0)
    assert whole.known_splits().train == data.videos().train + data.videos().val


@pytest.mark.filterwarnings("ignore:SyntheticMotion. bootstrap=")
def test_the_cache_holds_all_files_in_every_fold(root, tmp_path):
    options = {"cv_folds": 3, "cv_fold": 1, "bootstrap": 0, "cache": "memmap"}
    data = made(root, cache_root=str(tmp_path), **options)
    everything = {path.name for path in tmp_path.glob("*_*px/??/*")}
    assert len(everything) == 12 + 7 + 6
    for path in tmp_path.glob("*_*px/??/*"):
        path.unlink()
    data.prepare_data()  # after setup
    assert {path.name for path in tmp_path.glob("*_*px/??/*")} == everything


def test_a_lost_class_is_told():
    alone = Splits(some("train", {"p0": 1, "p1": 1, "p2": 1}), [], [], ["a", "b", "c"])
    with pytest.raises(InputError, match=r"Csv got cv_folds=3, and fold 2 takes all .*'[abc]'\]"):
        with_fold(alone, 3, 2, 0, "Csv")
    with pytest.raises(InputError, match="Csv got cv_folds=4, but there are 3 groups"):
        with_fold(alone, 4, 0, 0, "Csv")
    with pytest.warns(UserWarning, match=r"Csv: bootstrap=0 draws no training video of \['a'\]"):
        assert len(bootstrapped(alone, 0, "Csv").train) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrapped(of_persons(), 0, "Csv")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cv_folds": 1}, "cv_folds=1; give 2 or more"),
        ({"cv_fold": 1}, "cv_fold=1; give 0, or cv_folds too"),
        ({"cv_folds": 3, "cv_fold": 4}, "cv_fold=4; give 0 to 3"),
        ({"cv_folds": 3, "cv_fold": -1}, "cv_fold=-1; give 0 to 3"),
        ({"bootstrap": -1}, "bootstrap=-1; give a seed"),
    ],
)
def test_options_are_checked_at_the_door(options, said):
    with pytest.raises(InputError, match=f"SyntheticMotion got {said}"):
        SyntheticMotion(**options)


@pytest.mark.parametrize("options", [{"cv_folds": 2}, {"bootstrap": 0}])
def test_shards_are_not_resampled(options):
    with pytest.raises(InputError, match=rf"ShardedData got {next(iter(options))}=.*null; shards"):
        ShardedData(root="/nowhere", **options)


class CrashError(Exception):
    pass


class Crash(pl.Callback):
    """End training as a failure would."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            raise CrashError


def fit(root: str, folder: Path, callbacks=(), ckpt_path=None, num_workers=0) -> pl.Trainer:
    """Train two epochs of five batches with nothing to validate on."""
    pl.seed_everything(0, verbose=False)
    data = made(root, cv_folds=3, cv_fold=0, num_workers=num_workers)
    net = VideoClassifier(Tiny3D(num_classes=6), data.classes, partial(torch.optim.SGD, lr=0.1))
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            Predictions(folder),
            ModelCheckpoint(folder, "last", every_n_train_steps=1),
            *callbacks,
        ],
    )
    trainer.fit(net, data, ckpt_path=ckpt_path, weights_only=True)
    assert not {key for key in trainer.callback_metrics if key.startswith("val")}
    return trainer


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|LeafSpec|pin)")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.filterwarnings("ignore:Total length of `ClipLoader` across ranks is zero")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_to_validate_on_trains_resumes_and_tests(root, tmp_path, num_workers):
    whole = fit(root, tmp_path / "whole", num_workers=num_workers)
    assert whole.global_step == 10
    assert sum(whole.num_val_batches) == 0  # pyright: ignore[reportArgumentType]  # a list here
    with pytest.raises(CrashError):
        fit(root, tmp_path / "broken", [Crash()], num_workers=num_workers)
    (last,) = (tmp_path / "broken").glob("*.ckpt")
    resumed = fit(root, tmp_path / "broken", ckpt_path=last, num_workers=num_workers)
    assert resumed.global_step == 10
    for ours, theirs in zip(
        resumed.lightning_module.parameters(), whole.lightning_module.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    tested = resumed.test(resumed.lightning_module, made(root), verbose=False)
    assert "test/acc" in tested[0]
    none = made(root, cv_folds=3)
    assert resumed.validate(resumed.lightning_module, none, verbose=False) == []
    assert list(none.val_dataloader()) == []
