"""Whoever looks sees the old file or the new one, never half of one."""

import csv
import os
from pathlib import Path

import pytest

from regkit.files import cell, replacing, uncell, write_table, write_text


def test_a_file_is_whole_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, synced = tmp_path / "table.csv", []
    path.write_text("old")

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "newer")
    assert synced == [(5, "old")]
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_writer_that_is_stopped_leaves_the_old_one(tmp_path: Path, kind: str):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_and_stop() -> None:
        with replacing(path) as draft:
            assert (draft.parent, draft.suffix) == (path.parent, ".csv")
            if kind == "folder":
                draft.mkdir()
                draft = draft / "part"
            draft.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_its_place_whole(tmp_path: Path):
    with replacing(tmp_path / "shards") as draft:
        draft.mkdir()
        (draft / "one").write_text("1")
        assert not (tmp_path / "shards").exists()
    assert (tmp_path / "shards" / "one").read_text() == "1"
    assert os.listdir(tmp_path) == ["shards"]


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@x", "\t=x", "'=x", "''@", '=HYPERLINK("a")']
)
def test_no_cell_is_a_formula(tmp_path, text):
    write_table(tmp_path / "table.csv", [["name", text], ["plain", "it's"]])
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1] == f"'{text}"
    assert [[uncell(one) for one in row] for row in rows] == [["name", text], ["plain", "it's"]]


@pytest.mark.parametrize("value", ["-1.5", "+2", "-inf", -1, "a=b", "x-y", ""])
def test_numbers_and_plain_text_stay(value):
    assert cell(value) == value
