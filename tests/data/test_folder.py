from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from regkit.data.folder import Folder
from regkit.data.video import Video, by_group, folds_by_group
from regkit.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Four persons show three gestures five times; the split looks at names only."""
    for label in ("bow", "nod", "wave"):
        for person in range(4):
            for take in range(5):
                touch(tmp_path / label / "cam1" / f"S0{person}__{take}.mp4")
        touch(tmp_path / label / "notes.txt")
        touch(tmp_path / label / "._S00__0.mp4")
    touch(tmp_path / "empty" / "readme.md")
    return tmp_path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def groups(part: list[Video]) -> set[str]:
    return {video.group for video in part}


def test_classes_and_labels_come_from_the_folders(root):
    splits = Folder(root=str(root)).videos()
    assert splits.classes == ["bow", "nod", "wave"]
    everything = splits.train + splits.val + splits.test
    assert len({video.path for video in everything}) == len(everything) == 60
    for video in everything:
        assert Path(video.path).is_file()
        assert Path(video.path).relative_to(root).parts[0] == splits.classes[video.label]


def test_shares_hold_in_every_class(root):
    splits = Folder(root=str(root), val_share=0.2, test_share=0.2).videos()
    for part, count in ((splits.train, 12), (splits.val, 4), (splits.test, 4)):
        assert Counter(video.label for video in part) == dict.fromkeys(range(3), count)


def test_groups_stay_together(root):
    splits = Folder(root=str(root), group=r"(S\d+)__").videos()
    parts = [groups(part) for part in (splits.train, splits.val, splits.test)]
    assert set().union(*parts) == {"S00", "S01", "S02", "S03"}
    assert sum(map(len, parts)) == 4
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 15, 15]


def test_split_is_a_function_of_the_seed(root):
    assert Folder(root=str(root)).videos() == Folder(root=str(root)).videos()
    assert Folder(root=str(root), seed=1).videos() != Folder(root=str(root)).videos()


def test_groups_by_name(root):
    folder = Folder(
        root=str(root), group=r"(S\d+)__", val_groups=["S01"], test_groups=["S02", "S03"]
    )
    splits = folder.videos()
    assert groups(splits.train) == {"S00"}
    assert groups(splits.val) == {"S01"}
    assert groups(splits.test) == {"S02", "S03"}
    rest = Folder(root=str(root), group=r"(S\d+)__", test_groups=["S02"]).videos()
    assert groups(rest.test) == {"S02"}
    assert len(groups(rest.val)) == 1


def test_include_restricts_the_classes(root):
    splits = Folder(root=str(root), include=["wave", "bow"]).videos()
    assert splits.classes == ["bow", "wave"]
    assert len(splits.train + splits.val + splits.test) == 40


def test_folders_of_splits(tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            for number in range(10):
                touch(tmp_path / split / label / f"{split}{number}.avi")
    splits = Folder(root=str(tmp_path), val_share=0.2).videos()
    assert splits.classes == ["a", "b"]
    assert {Path(video.path).parts[-3] for video in splits.train + splits.val} == {"train"}
    assert {Path(video.path).parts[-3] for video in splits.test} == {"test"}
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [16, 4, 20]


def test_lists_with_ucf_labels(root):
    train, test = root / "train.txt", root / "test.txt"
    names = [f"{label}/cam1/S0{s}__0.mp4" for s in range(3) for label in ("bow", "nod")]
    train.write_text("".join(f"{name} 1\n" for name in names) + "\n")
    test.write_text("bow/cam1/S03__1.mp4\nnod/cam1/S03__2.mp4\n")
    folder = Folder(root=str(root), train_list=str(train), test_list=str(test), val_share=0.3)
    splits = folder.videos()
    assert splits.classes == ["bow", "nod"]
    assert [video.label for video in splits.test] == [0, 1]
    assert sorted(Path(v.path).relative_to(root).as_posix() for v in splits.train + splits.val) == (
        sorted(names)
    )
    assert {video.label for video in splits.val} == {0, 1}


def test_folds_test_each_person_once(root):
    tested = []
    for fold in (1, 2, 3, 4):
        splits = Folder(root=str(root), group=r"(S\d+)__", num_folds=4, fold=fold).videos()
        parts = [groups(part) for part in (splits.train, splits.val, splits.test)]
        assert [len(part) for part in parts] == [2, 1, 1]
        assert len(set().union(*parts)) == 4
        tested += [*parts[2]]
    assert sorted(tested) == ["S00", "S01", "S02", "S03"]


def test_folds_of_single_files_are_balanced(root):
    options = {"root": str(root), "num_folds": 5, "val_share": 0.25}
    for fold in range(1, 6):
        splits = Folder(**options, fold=fold).videos()
        for part, count in ((splits.train, 12), (splits.val, 4), (splits.test, 4)):
            assert Counter(video.label for video in part) == dict.fromkeys(range(3), count)
        assert Folder(**options, fold=fold).videos() == splits
    tests = [{v.path for v in Folder(**options, seed=seed).videos().test} for seed in range(3)]
    assert tests[0] != tests[1] != tests[2]


def test_what_a_user_gets_wrong(root, tmp_path):
    def refused(match: str, **options) -> None:
        with pytest.raises(InputError, match=match):
            Folder(**{"root": str(root), **options}).videos()

    missing, twice = tmp_path / "missing.txt", tmp_path / "twice.txt"
    missing.write_text("bow/cam1/S00__0.mp4\nbow/gone.mp4 2\nbow/lost.mp4\n")
    twice.write_text("bow/cam1/S00__0.mp4\nnod/cam1/S00__0.mp4\n")
    person = r"(S\d+)__"
    refused("no folder", root="/nowhere")
    refused("no videos in class folders", root=str(root / "empty"))
    refused("only the class 'bow'", include=["bow"])
    refused(r"include=\['jump'\]", include=["bow", "nod", "jump"])
    refused("2 of 3 files .* first is 'bow/gone.mp4 2'", train_list=str(missing))
    refused("train_list too", test_list=str(twice))
    refused("is no file", train_list="nowhere.txt")
    refused("both in train and in test", train_list=str(twice), test_list=str(twice))
    refused("group='X.*does not fit 60 of 60", group=r"X(\d)")
    refused("one pair of brackets", group=r"S\d+")
    refused("no regular expression", group=r"(S\d+")
    refused("to name groups", val_groups=["S01"])
    refused(r"test_groups=\['S09'\].*there are \['S00'", group=person, test_groups=["S09"])
    refused("named twice", group=person, val_groups=["S00"], test_groups=["S00"])
    refused("no videos are left for val", group=r"/(cam1)/")
    refused("a share between", val_share=0.0)
    refused("training gets none", val_share=0.5, test_share=0.5)
    refused("5, but there are 4 groups.*fewer folds", group=person, num_folds=5)
    refused("num_folds=1; give 2 or more", num_folds=1)
    refused("fold=6; give 1 to 5", num_folds=5, fold=6)
    refused("fold=2; give num_folds too", fold=2)
    refused("no val_groups or test_groups", num_folds=2, group=person, test_groups=["S01"])
    twice.write_text("bow/cam1/S00__0.mp4\nnod/cam1/S00__0.mp4\n")
    once = tmp_path / "once.txt"
    once.write_text("bow/cam1/S01__0.mp4\n")
    lists = {"train_list": str(twice), "test_list": str(once)}
    refused(r"num_folds=2, but \['test'\] is given by files", num_folds=2, **lists)
    for take in range(5):
        touch(root / "jump" / f"S00__{take}.mp4")
    refused(
        r"no training video of \['jump'\]", group=person, val_groups=["S00"], test_groups=["S01"]
    )


videos = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80)


@given(videos, st.integers(0, 99))
def test_law_no_group_is_torn_and_no_video_lost(pairs, seed):
    given_videos = [Video(str(n), label, str(group)) for n, (label, group) in enumerate(pairs)]
    parts = by_group(given_videos, {"train": 0.6, "val": 0.2, "test": 0.2}, seed)
    assert sorted(v.path for part in parts.values() for v in part) == sorted(
        v.path for v in given_videos
    )
    for group in {video.group for video in given_videos}:
        assert sum(group in groups(part) for part in parts.values()) == 1
    assert parts == by_group(given_videos[::-1], {"train": 0.6, "val": 0.2, "test": 0.2}, seed)


@given(st.integers(10, 60), st.integers(0, 99))
def test_law_shares_are_met_when_each_video_is_a_group(count, seed):
    given_videos = [Video(str(n), n % 3, str(n)) for n in range(3 * count)]
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    parts = by_group(given_videos, shares, seed)
    for name, share in shares.items():
        for label in range(3):
            got = sum(video.label == label for video in parts[name])
            assert abs(got - share * count) <= 2


@given(videos, st.integers(2, 6), st.integers(0, 99))
def test_law_folds_tear_no_group_and_test_each_video_once(pairs, num_folds, seed):
    given_videos = [Video(str(n), label, str(group)) for n, (label, group) in enumerate(pairs)]
    names = groups(given_videos)
    if num_folds > len(names):
        with pytest.raises(InputError, match=f"X got num_folds={num_folds}, .* {len(names)} gr"):
            folds_by_group(given_videos, num_folds, seed, "X")
        return
    folds = folds_by_group(given_videos, num_folds, seed, "X")
    assert len(folds) == num_folds
    assert all(folds)
    assert sorted(v.path for fold in folds for v in fold) == sorted(v.path for v in given_videos)
    assert sum(len(groups(fold)) for fold in folds) == len(names)
    assert folds == folds_by_group(given_videos[::-1], num_folds, seed, "X")


@given(st.lists(st.integers(1, 9), min_size=6, max_size=40), st.integers(2, 6), st.integers(0, 99))
def test_law_folds_of_pure_groups_differ_by_one_group_at_most(sizes, num_folds, seed):
    """Each class by itself is dealt to the least loaded fold, so no gap exceeds its largest."""
    given_videos = [
        Video(f"{g}_{n}", g % 3, str(g)) for g, size in enumerate(sizes) for n in range(size)
    ]
    folds = folds_by_group(given_videos, num_folds, seed, "X")
    for label in range(3):
        held = [sum(v.label == label for v in fold) for fold in folds]
        assert max(held) - min(held) <= max(sizes[label::3])


def test_folds_of_mixed_groups_are_as_balanced_as_scikit_learns():
    """Skewed groups; the unbalance is the mean spread of a class's share over the folds."""
    rng, ratios = np.random.default_rng(0), []
    for seed in range(20):
        labels, names = rng.integers(0, 5, 400), rng.geometric(0.05, 400)
        given_videos = [
            Video(str(n), int(c), str(g))
            for n, (c, g) in enumerate(zip(labels, names, strict=True))
        ]
        theirs = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        parts = [labels[test] for _, test in theirs.split(labels, labels, names)]
        ours = [
            np.array([v.label for v in fold]) for fold in folds_by_group(given_videos, 5, seed, "X")
        ]
        spread = [
            np.std([np.bincount(p, minlength=5) for p in those], axis=0).mean()
            for those in (ours, parts)
        ]
        ratios.append(spread[0] / spread[1])
    assert np.mean(ratios) < 1.1
