"""UCF101 as it is distributed, made small: read, and spoilt."""

from pathlib import Path

import pytest
from spoil import names, refused, write

from regkit.data.dataset_files import index
from regkit.data.ucf101 import UCF101

UCF_CLASSES = ("ApplyEyeMakeup", "ApplyLipstick", "Zumba")  # the official order, not the sorted one
UCF_ORDER = ("ApplyLipstick", "Zumba", "ApplyEyeMakeup")
UCF_TEST = {1: (1, 2), 2: (3, 4), 3: (5, 6)}  # groups held out, by fold


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Six groups of two clips a class, with the line ends that the real lists have."""
    lists = tmp_path / "ucfTrainTestlist"
    clips = {
        (label, group, clip): f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi"
        for label in UCF_CLASSES
        for group in range(1, 7)
        for clip in (1, 2)
    }
    for name in clips.values():
        write(tmp_path / "UCF-101" / name)
    number = {label: n for n, label in enumerate(UCF_ORDER, 1)}
    write(lists / "classInd.txt", "".join(f"{n} {label}\r\n" for label, n in number.items()))
    for fold, held in UCF_TEST.items():
        train = [(c, name) for c, name in clips.items() if c[1] not in held]
        test = [name for c, name in clips.items() if c[1] in held]
        text = "".join(f"{name} {number[c[0]]}\r\n" for c, name in train)
        write(lists / f"trainlist0{fold}.txt", text)
        write(lists / f"testlist0{fold}.txt", "".join(f"{name}\r\n" for name in test))
    return tmp_path


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_ucf101_is_the_official_fold(ucf: Path, fold: int):
    root = ucf / "UCF-101"
    splits = UCF101(root=str(root), fold=fold, val_share=0.25).videos()
    assert splits.classes == ["ApplyLipstick", "Zumba", "ApplyEyeMakeup"]
    assert names(splits.test, root) == {
        f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi"
        for label in UCF_CLASSES
        for group in UCF_TEST[fold]
        for clip in (1, 2)
    }
    rest = splits.train + splits.val
    assert len(names(rest, root)) == len(rest) == 24
    assert not names(rest, root) & names(splits.test, root)
    for video in rest + splits.test:
        label = Path(video.path).parent.name
        assert splits.classes[video.label] == label
        assert video.group == f"{label}/{Path(video.path).stem.split('_')[2]}"
    assert [sum(v.label == n for v in splits.val) for n in range(3)] == [2, 2, 2]
    assert not {v.group for v in splits.train} & {v.group for v in splits.val}


def test_ucf101_is_found_from_above_and_restricted(ucf: Path):
    below = UCF101(root=str(ucf / "UCF-101")).videos()
    above = UCF101(root=str(ucf), annotations=str(ucf / "ucfTrainTestlist")).videos()
    assert above == below
    assert UCF101(root=str(ucf)).videos() == below
    some = UCF101(root=str(ucf), include=["ApplyEyeMakeup", "Zumba"]).videos()
    assert some.classes == ["Zumba", "ApplyEyeMakeup"]
    assert len(some.test) == 8


def test_ucf101_recoded_and_renamed_class_folder(ucf: Path):
    """The real set spells one folder HandstandPushups and its files HandStandPushups."""
    lists = ucf / "ucfTrainTestlist"
    for path in lists.iterdir():
        path.write_text(path.read_text().replace("Zumba/", "zumba/").replace(" Zumba", " zumba"))
    (ucf / "UCF-101" / "Zumba").rename(ucf / "UCF-101" / "zumba")
    for path in (ucf / "UCF-101").rglob("*.avi"):
        path.rename(path.with_suffix(".mp4"))
    splits = UCF101(root=str(ucf)).videos()
    assert splits.classes[1] == "zumba"
    assert len(splits.train + splits.val + splits.test) == 36


def test_ucf101_refuses(ucf: Path):
    root, lists = str(ucf), ucf / "ucfTrainTestlist"
    refused("UCF101 got fold=4; give 1, 2 or 3", lambda: UCF101(root=root, fold=4))
    refused("share between", lambda: UCF101(root=root, val_share=1.0))
    refused("min_found=0.0", lambda: UCF101(root=root, min_found=0.0))
    refused("no folder. Set data.root", lambda: UCF101(root="/nowhere").videos())
    refused("no classInd.txt in .*Set data.annotations",
            lambda: UCF101(root=root, annotations=str(ucf / "UCF-101")).videos())  # fmt: skip
    refused(r"include=\['Zumbo'\]", lambda: UCF101(root=root, include=["Zumba", "Zumbo"]).videos())
    (lists / "testlist02.txt").unlink()
    refused("testlist02.txt', which is no file", lambda: UCF101(root=root, fold=2).videos())
    train = lists / "trainlist01.txt"
    text = train.read_text()
    for bad in ("Zumba/v_Zumba_g01_c01.avi 3", "Samba/v_Samba_g01_c01.avi", "v_Zumba_g01_c01.avi 2",
                "Zumba/v_Zumba_c01.avi 2"):  # fmt: skip
        train.write_text(text + bad)
        refused(f"not understand 1 of 25 entries .*{bad!r}", lambda: UCF101(root=root).videos())
    write(lists / "classInd.txt", "0 Zumba\n1 ApplyLipstick\n")
    refused("2 of 2 entries.*first is '0 Zumba'.*from 1", lambda: UCF101(root=root).videos())


def test_ucf101_without_some_files(ucf: Path):
    for name in ("g01_c01", "g03_c02"):
        (ucf / "UCF-101" / "Zumba" / f"v_Zumba_{name}.avi").unlink()
    lost = "1 of 24 in train, 1 of 12 in test; the first is 'Zumba/v_Zumba_g03_c02.avi 2'"
    refused(f"misses the files of {lost}.*lower min_found", lambda: UCF101(root=str(ucf)).videos())
    with pytest.warns(UserWarning, match=f"leaves out .*{lost}"):
        splits = UCF101(root=str(ucf), min_found=0.9).videos()
    assert [len(splits.train) + len(splits.val), len(splits.test)] == [23, 11]
    refused("misses", lambda: UCF101(root=str(ucf), min_found=0.95).videos())


def test_an_official_split_that_leaks_is_kept_with_a_warning(ucf: Path):
    path = ucf / "ucfTrainTestlist" / "testlist01.txt"
    path.write_text(path.read_text() + "Zumba/v_Zumba_g03_c01.avi\nZumba/v_Zumba_g04_c01.avi\n")
    with pytest.warns(UserWarning, match="'Zumba/g0[34]' is both in .*the official split is kept"):
        splits = UCF101(root=str(ucf)).videos()
    assert len(splits.test) == 14


def test_links_are_followed_once(ucf: Path, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("links")
    (root / "videos").symlink_to(ucf / "UCF-101", target_is_directory=True)
    (ucf / "UCF-101" / "back").symlink_to(root, target_is_directory=True)
    splits = UCF101(root=str(root), annotations=str(ucf / "ucfTrainTestlist")).videos()
    assert len({v.path for v in splits.train + splits.val + splits.test}) == 36
    assert {len(places) for places in index(str(root)).values()} == {1}


def test_drawn_validation_is_a_function_of_the_seed(ucf: Path):
    assert UCF101(root=str(ucf)).videos() == UCF101(root=str(ucf)).videos()
    vals = {tuple(v.path for v in UCF101(root=str(ucf), seed=s).videos().val) for s in range(5)}
    assert len(vals) > 1


def test_an_untaught_class_is_refused(ucf: Path):
    for path in (ucf / "UCF-101" / "Zumba").iterdir():
        if path.stem[-6:-4] not in ("01", "02"):
            path.unlink()
    with pytest.warns(UserWarning, match="8 of 24"):
        refused(r"no training video of \['Zumba'\]",
                lambda: UCF101(root=str(ucf), min_found=0.5).videos())  # fmt: skip
