"""Tables and lists of the user's own: read, split, and spoilt."""

from pathlib import Path
from typing import Any

import pytest

from regkit.data.csv import Csv
from regkit.data.video import Splits, Video
from regkit.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of four persons in two classes; one name has a space, a comma and an umlaut."""
    for label in ("run", "wave"):
        for person in range(4):
            for take in range(3):
                name = f"{label}/P{person}__{take} ä, b.mp4"
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).touch()
    return tmp_path


def file(label: str, person: int, take: int = 0) -> str:
    return f"{label}/P{person}__{take} ä, b.mp4"


EVERY = [(label, p, take) for label in ("run", "wave") for p in range(4) for take in range(3)]


def table(root: Path, lines: list[str], name: str = "videos.csv", code: str = "utf-8") -> str:
    (root / name).write_text("\r\n".join([*lines, ""]), encoding=code, newline="")
    return str(root / name)


def everything(splits: Splits) -> list[Video]:
    return splits.train + splits.val + splits.test


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_is_read_as_written(root: Path, delimiter: str, code: str):
    split = ("train", "Validation", "test", "training")
    rows = [("label", "split", "path", "start", "end", "group", "note")]
    rows += [(c, split[p], f'"{file(c, p, t)}"', "1.5", f"{t + 2}", f"P{p}", "x")
             for c, p, t in EVERY]  # fmt: skip
    made = table(root, [delimiter.join(row) for row in rows], code=code)
    splits = Csv(file=made).videos()
    assert splits.classes == ["run", "wave"]
    for part, persons in ((splits.train, (0, 3)), (splits.val, (1,)), (splits.test, (2,))):
        assert sorted(part, key=str) == [
            Video(str(root / file(c, p, t)), ("run", "wave").index(c), f"P{p}", 1.5, t + 2.0)
            for c, p, t in EVERY
            if p in persons
        ]


def test_empty_times_are_those_of_the_file(root: Path):
    lines = ["path,label,start,end"]
    lines += [f'"{file(c, p, t)}",{c},,' for c, p, t in EVERY]
    splits = Csv(file=table(root, lines)).videos()
    assert {(v.start_s, v.end_s, v.group == v.path) for v in everything(splits)} == {
        (0.0, None, True)
    }


def test_columns_may_have_other_names_and_files_another_root(root: Path, tmp_path_factory: Any):
    lines = ["clip;class;who", *(f"{file(c, p, t)};{c};{p}" for c, p, t in EVERY)]
    made = table(tmp_path_factory.mktemp("elsewhere"), lines)
    options = {"path_column": "clip", "label_column": "class", "group_column": "who"}
    splits = Csv(file=made, root=str(root), **options, test_groups=["2"], val_groups=["0"]).videos()
    assert {v.group for v in splits.train} == {"1", "3"}
    assert {v.group for v in splits.val} == {"0"}
    assert {v.group for v in splits.test} == {"2"}
    assert len(everything(splits)) == 24


def test_parts_of_one_file_stay_on_one_side(root: Path):
    lines = ["path\tlabel\tstart\tend"]
    times = (("a", 0), ("b", 5), ("a", 10))
    files = [file("run", p, t) for p in range(4) for t in range(3)]
    lines += [f"{name}\t{c}\t{s}\t{s + 5}" for name in files for c, s in times]
    splits = Csv(file=table(root, lines), val_share=0.2, test_share=0.2).videos()
    assert len(everything(splits)) == 36
    parts = [{v.path for v in part} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 12


def test_numbers_are_ordered_as_numbers_and_names_as_names(root: Path):
    paths = [file(c, p, t) for c, p, t in EVERY]
    lines = ["path;label", *(f"{path};{2 + 3 * (n % 4)}" for n, path in enumerate(paths))]
    assert Csv(file=table(root, lines)).videos().classes == ["2", "5", "8", "11"]
    assert Csv(file=table(root, lines), include=[11, "5"]).videos().classes == ["5", "11"]
    lines = [line.replace(";2", ";two") for line in lines]
    assert Csv(file=table(root, lines)).videos().classes == ["11", "5", "8", "two"]


@pytest.mark.parametrize("delimiter", [" ", ",", "\t", ", "])
def test_lists_as_other_toolkits_use_them(root: Path, delimiter: str):
    """The separator is the last one of a line: paths hold spaces and commas too."""

    def made(name: str, persons: tuple[int, ...]) -> str:
        lines = [f"{file(c, p, t)}{delimiter}{('wave', 'run').index(c)}"
                 for c, p, t in EVERY if p in persons]  # fmt: skip
        return table(root, ["", *lines, ""], name)

    three = {name: made(f"{name}.txt", at) for name, at in
             (("train", (0, 1)), ("val", (2,)), ("test", (3,)))}  # fmt: skip
    splits = Csv(**three, group=r"/(P\d)__").videos()
    assert splits.classes == ["0", "1"]
    for part, persons in ((splits.train, (0, 1)), (splits.val, (2,)), (splits.test, (3,))):
        assert sorted(part, key=str) == [
            Video(str(root / file(c, p, t)), ("wave", "run").index(c), f"P{p}")
            for c, p, t in EVERY
            if p in persons
        ]
    drawn = Csv(train=three["train"], test=three["test"], val_share=0.2).videos()
    assert [len(part) for part in (drawn.train, drawn.val, drawn.test)] == [10, 2, 6]


def test_folds_test_each_person_once(root: Path):
    lines = ["path;label;group", *(f"{file(c, p, t)};{c};P{p}" for c, p, t in EVERY)]
    made, tested = table(root, lines), []
    for fold in (1, 2):
        splits = Csv(file=made, num_folds=2, fold=fold, val_share=0.4).videos()
        assert {len(part) for part in (splits.train, splits.val)} == {6}
        assert len(everything(splits)) == 24
        tested += [v.group for v in splits.test if v.label == 0]
    assert sorted(tested) == sorted(f"P{p}" for p in range(4) for _ in range(3))


def test_what_is_missing_is_counted(root: Path):
    lines = ["path;label", *(f"{file(c, p, t)};{c}" for c, p, t in EVERY)]
    made = table(root, lines)
    for take in (0, 1):
        (root / file("wave", 0, take)).unlink()
    said = "2 of 24 in train; the first is '.*wave/P0__0 ä, b.mp4'"
    with pytest.raises(InputError, match=f"Csv misses the files of {said}"):
        Csv(file=made).videos()
    with pytest.warns(UserWarning, match=said):
        assert len(everything(Csv(file=made, min_found=0.9).videos())) == 22


def test_what_a_user_gets_wrong_in_options(root: Path):
    lines = ["path;label;group", *(f"{file(c, p, t)};{c};P{p}" for c, p, t in EVERY)]
    made = table(root, lines)

    def refused(match: str, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            Csv(**{"file": made, **options}).videos()

    refused("no list of training videos. Give data.file or data.train", file=None)
    refused("null, or none of train", train=made)
    refused("Give data.file or data.train", file=None, val=made)
    refused("file='nowhere.csv', which is no file", file="nowhere.csv")
    refused("root='/nowhere'; give a folder", root="/nowhere")
    refused("delimiter='::'; give one character", delimiter="::")
    refused("min_found=1.5", min_found=1.5)
    refused("whose first line 'path;label;group' is neither .*'path'.*'label'", delimiter=",")
    refused("neither a header with 'clip'.*path_column", path_column="clip")
    refused(r"with the columns \['path', 'label', 'group'\]; it needs each of \['who'\]",
            group_column="who")  # fmt: skip
    refused(r"include=\['fly'\]", include=["run", "wave", "fly"])
    refused("num_folds=1; give 2 or more", num_folds=1)
    refused("fold=2; give num_folds too", fold=2)
    refused("fold=4; give 1 to 3", num_folds=3, fold=4)
    refused("fold=0; give 1 to 3", num_folds=3, fold=0)
    refused("num_folds=3; give no val_groups", num_folds=3, val_groups=["P1"])
    refused("num_folds=5, but there are 4 groups", num_folds=5)
    (root / "more.mp4").touch()
    test = table(root, ["path;label", "more.mp4;run"], "test.csv")
    refused(r"num_folds=2, but \['test'\] is", file=None, train=made, test=test, num_folds=2)
    refused(r"test_groups=\['P9'\].*there are \['P0'", test_groups=["P9"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "first line '' is neither"),
        ("path,label\n", "lists no videos"),
        ("path,label,path\na,b,a\n", r"it needs each of \['path'\] once"),
        ("some.mp4,run\nother.mp4,wave\n", "nor a path and a number"),
        ("path,label\na.mp4\n", "1 of 1 videos .*line 2 is 'a.mp4': it has 1 fields, the header 2"),
        ("path label\na b.mp4 run\n", "line 2 is 'a b.mp4 run': it has 3 fields, the header 2"),
        ("path,label\n\n,run\n", "line 3 is ',run': its path is empty"),
        ("path,label\na.mp4, \n", "its label is empty"),
        ("path,label,group\na.mp4,run,\n", "its group is empty"),
        ("path,label,split\na.mp4,run,\n", "its split is empty"),
        ("path,label,split\na.mp4,run,tset\n", "1 videos in a split .*'tset' in line 2"),
        ("path,label,split\na.mp4,run,test\n", "0 videos in a split .* 0 for train"),
        ("path,label,start,end\na,b,x,\n", "start and end are in seconds"),
        ("path,label,start,end\na,b,5,5\n", "it must start at 0"),
        ("path,label,start,end\na,b,-1,5\n", "it must start at 0"),
        ("path,label,start,end\na,b,nan,5\n", "it must start at 0"),
        ('path,label\n"a,b\n', "cannot read .*line 2"),
        ("a.mp4 0\nb.mp4,1\nc d.mp4 2\n", "1 of 3 videos .*line 2 is 'b.mp4,1': .*' ' and a num"),
        ("a.mp4 0\nb.mp4 x\n", "line 2 is 'b.mp4 x'"),
        ("path,label\na.mp4,run\nb.mp4,wave\n./a.mp4,run\n",
         "1 videos that are listed twice, .*'./a.mp4' in line 2 of .* and in line 4"),
        ("path,label\na.mp4,run\nb.mp4,run\n", "only the class 'run'"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_in_a_file(tmp_path: Path, text: str, match: str):
    made = tmp_path / "videos.csv"
    made.write_text(text)
    with pytest.raises(InputError, match=match):
        Csv(file=str(made)).videos()


def test_a_file_in_another_code_is_refused(tmp_path: Path):
    made = tmp_path / "videos.csv"
    for code in ("latin-1", "utf-16"):
        made.write_bytes("path,label\nä.mp4,run\n".encode(code))
        with pytest.raises(InputError, match=r"cannot read .* at byte .*Save it as UTF-8"):
            Csv(file=str(made)).videos()


def test_a_group_on_both_sides_is_refused(root: Path):
    lines = ["path;label;group;split"]
    lines += [f"{file(c, p, t)};{c};P{p};{'train' if t else 'test'}" for c, p, t in EVERY]
    with pytest.raises(InputError, match=r"group 'P[0-3]' is both in train and in test"):
        Csv(file=table(root, lines)).videos()


def test_a_real_table(shared: Path):
    """Ten people, 450 clips: leave two people out at a time."""
    made = str(shared / "bodygesture" / "index.csv")
    tested: list[str] = []
    for fold in range(1, 6):
        splits = Csv(file=made, path_column="clip", num_folds=5, fold=fold).videos()
        assert [len(splits.classes), len(splits.test), len(everything(splits))] == [15, 90, 450]
        groups = [{v.group for v in part} for part in (splits.train, splits.val, splits.test)]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 10
        tested += [v.path for v in splits.test]
    assert len(set(tested)) == len(tested) == 450
