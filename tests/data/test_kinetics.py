"""Kinetics as it is distributed, made small: read, and spoilt."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from spoil import refused, write

from regkit.data.kinetics import Kinetics

KINETICS = {  # split: label, id, start, end
    "train": [("air drumming", f"-a{n}_tr-{n:04d}", 12 + n, 22 + n) for n in range(6)]
    + [("zumba", f"_z{n}__train{n}", n, 10 + n) for n in range(6)],
    "validate": [("zumba", "zval", 100, 110), ("air drumming", "aval", 0, 10)],
    "test": [("air drumming", "atest", 7, 17), ("zumba", "ztest", 9, 19)],
}
Place = Callable[[str, str, str], str]
PLACES: Mapping[str, Place] = {
    "split/class": lambda split, label, cut: f"{split}/{label}/{cut}.mp4",
    "split/class_": lambda split, label, cut: f"{split}/{label.replace(' ', '_')}/{cut}.webm",
    "split": lambda split, label, cut: f"{split}/{cut}.mkv",
    "flat": lambda split, label, cut: f"{cut}.mp4",
}


def kinetics(root: Path, place: Place, answers: bool = True, files: bool = True) -> Path:
    for split, rows in KINETICS.items():
        lines = ["label,youtube_id,time_start,time_end,split"]
        lines += [f'"{a}",{b},{c},{d},{split}' if " " in a else f"{a},{b},{c},{d},{split}"
                  for a, b, c, d in rows]  # fmt: skip
        if split == "test" and not answers:
            lines = [line.partition(",")[2] for line in lines]
        write(root / "annotations" / f"{split}.csv", "\r\n".join([*lines, ""]))
        for label, name, start, end in rows if files else ():
            write(root / "videos" / place(split, label, f"{name}_{start:06d}_{end:06d}"))
    return root


@pytest.mark.parametrize("form", PLACES)
def test_kinetics_is_the_official_split(tmp_path: Path, form: str):
    root = kinetics(tmp_path, PLACES[form]) / "videos"
    splits = Kinetics(root=str(root)).videos()
    assert splits.classes == ["air drumming", "zumba"]
    for part, split in ((splits.train, "train"), (splits.val, "validate"), (splits.test, "test")):
        assert {(splits.classes[v.label], v.group, v.path, v.start_s, v.end_s) for v in part} == {
            (a, b, str(root / PLACES[form](split, a, f"{b}_{c:06d}_{d:06d}")), 0.0, None)
            for a, b, c, d in KINETICS[split]
        }


@pytest.mark.parametrize("answers", [False, True])
def test_kinetics_without_test_labels_or_files_tests_on_validation(
    tmp_path: Path, answers: bool, caplog: pytest.LogCaptureFixture
):
    root = kinetics(tmp_path, PLACES["split"], answers=answers)
    if answers:
        for path in (root / "videos" / "test").iterdir():
            path.unlink()
    with caplog.at_level(logging.INFO):
        splits = Kinetics(root=str(root), val_share=0.2).videos()
    assert "tests on the official validation set" in caplog.text
    assert {v.group for v in splits.test} == {"zval", "aval"}
    assert sorted(v.group for v in splits.train + splits.val) == sorted(
        b for _, b, _, _ in KINETICS["train"]
    )
    assert sorted(v.label for v in splits.val) == [0, 1]
    refused("no test videos with labels", lambda: Kinetics(root=str(root), test_on="test").videos())


def test_kinetics_tests_where_it_is_told(tmp_path: Path):
    root = str(kinetics(tmp_path, PLACES["split"]))
    on_val, on_test = (Kinetics(root=root, test_on=one).videos() for one in ("val", "test"))
    assert {v.group for v in on_val.test} == {"zval", "aval"}
    assert {v.group for v in on_test.test} == {"ztest", "atest"}
    assert {v.group for v in on_test.val} == {"zval", "aval"}
    (tmp_path / "annotations" / "test.csv").unlink()
    assert {v.group for v in Kinetics(root=root).videos().test} == {"zval", "aval"}


def test_kinetics_uses_the_part_of_an_uncut_video(tmp_path: Path):
    root = kinetics(tmp_path, PLACES["split"])
    cut = root / "videos" / "validate" / "zval_000100_000110.mkv"
    cut.rename(cut.with_name("zval.mkv"))
    (video,) = (v for v in Kinetics(root=str(root)).videos().val if v.group == "zval")
    assert (video.path, video.start_s, video.end_s) == (str(cut.with_name("zval.mkv")), 100, 110)


def test_kinetics_prefers_the_folder_of_the_split(tmp_path: Path):
    root = kinetics(tmp_path, PLACES["split"])
    name = "zval_000100_000110.mkv"
    write(root / "videos" / "replacement" / name)
    write(root / "videos" / "train" / name)
    splits = Kinetics(root=str(root)).videos()
    assert {Path(v.path).parent.name for v in splits.val} == {"validate"}


def test_kinetics_leaves_out_what_is_missing(tmp_path: Path):
    root = kinetics(tmp_path, PLACES["split"])
    for n in range(3):
        (root / "videos" / "train" / f"_z{n}__train{n}_00000{n}_00001{n}.mkv").unlink()
    said = (
        "3 of 12 in train, 0 of 2 in val, 0 of 2 in test; the first is '_z0__train0_000000_000010'"
    )
    with pytest.warns(UserWarning, match=f"Kinetics leaves out .*{said}"):
        splits = Kinetics(root=str(root)).videos()
    assert [len(splits.train), len(splits.val), len(splits.test)] == [9, 2, 2]
    refused(
        f"misses .*{said}.*0.8 of each", lambda: Kinetics(root=str(root), min_found=0.8).videos()
    )
    nothing = kinetics(tmp_path / "empty", PLACES["split"], files=False)
    refused("12 of 12 in train, 2 of 2 in test", lambda: Kinetics(root=str(nothing)).videos())


def test_kinetics_refuses(tmp_path: Path):
    root = kinetics(tmp_path, PLACES["flat"])
    folder = root / "annotations"

    def read(**options: Any) -> Callable[[], Any]:
        return lambda: Kinetics(root=str(root), **options).videos()

    refused("no folder", lambda: Kinetics(root="/nowhere").videos())
    refused('test_on=.both.; give "auto"', read(test_on="both"))
    refused(r"no \*train.csv", read(annotations=str(root / "videos")))
    write(folder / "val.csv", (folder / "validate.csv").read_text())
    refused(r"cannot choose from \['val.csv', 'validate.csv'\]", read())
    (folder / "val.csv").unlink()
    text = (folder / "validate.csv").read_text()
    write(folder / "validate.csv", text + "zamba,x,1,11,val\n")
    refused("1 of 3 entries .*validate.csv.*'zamba,x,1,11'.*classes of train.csv", read())
    for bad in ("zumba,x,11,1", "zumba,x,one,11", "zumba,,1,11", "zumba,x,1", "zumba,x,1,inf"):
        write(folder / "validate.csv", f"{text}{bad}\n")
        refused("1 of 3 entries .*validate.csv.*time_start before", read())
    write(folder / "validate.csv", f"{text}{'z' * 200_000},x,1,11,val\n")
    refused("cannot read .*validate.csv, line 3: field larger", read())
    write(folder / "validate.csv", text.replace("youtube_id", "id"))
    refused("with the columns .*it needs label, youtube_id", read())
    (folder / "validate.csv").write_bytes("zumba é".encode("latin-1"))
    refused("cannot read .*validate.csv.*Save it as UTF-8", read())
    (folder / "validate.csv").unlink()
    refused("found no val.csv", read())
