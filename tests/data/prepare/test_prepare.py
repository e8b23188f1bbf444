"""The verb as a whole: planted damage in, report and exit code out."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from regkit.__main__ import main
from regkit.data.prepare import check


@pytest.fixture
def videos(write, tmp_path: Path) -> Path:
    """Write root/{train,val,test}/{jump,run}: 3, 1 and 2 videos a class."""
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for label in ("jump", "run"):
            for number in range(count):
                write(f"videos/{split}/{label}/{number}.mp4")
    return tmp_path / "videos"


def prepare(root: Path, *more: str) -> int:
    out = root.parent / "out"
    shared = [f"data.cache_root={root.parent / 'cache'}", "data.num_frames=8", f"--out={out}"]
    return main(["prepare", "data=folder", f"data.root={root}", *shared, "--workers=2", *more])


def record(root: Path) -> dict[str, Any]:
    return json.loads((root.parent / "out" / "report.json").read_text())


def table(root: Path) -> list[dict[str, str]]:
    with (root.parent / "out" / "files.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sound_data_set_exits_with_0(videos: Path, capsys):
    assert prepare(videos) == 0
    out, err = capsys.readouterr()
    assert out.startswith("folder: 12 videos of 2 classes in 12 files, ")
    assert out.endswith(f"\nsound\nreport: {videos.parent / 'out' / 'report.md'}\n")
    assert "frames: 20 to 20, median 20\n" in out
    assert "resolutions: 64 x 48 (12)\n" in out
    assert len(out.splitlines()) < 20
    assert "12/12" in err

    found = record(videos)
    assert found["sound"]
    assert found["problems"] == []
    assert found["classes"]["jump"] == {"train": [3, 3], "val": [1, 1], "test": [2, 2]}
    assert found["statistics"]["duration_s"]["median"] == pytest.approx(0.8)
    assert found["overrides"][:2] == ["data=folder", f"data.root={videos}"]

    lines = table(videos)
    assert len(lines) == 12
    assert len({line["sha256"] for line in lines}) == 12
    assert {(line["split"], line["class"]) for line in lines} == {
        (split, label) for split in ("train", "val", "test") for label in ("jump", "run")
    }
    page = (videos.parent / "out" / "report.md").read_text()
    assert "**Sound.**" in page
    assert "| jump | 3 | 1 | 2 |" in page
    names = {path.name for path in (videos.parent / "out").iterdir()}
    assert names == {"report.json", "report.md", "files.csv"}


def test_all_planted_damage_is_found(videos: Path, capsys):
    (videos / "train/jump/bad.mp4").write_text("no video")
    (videos / "train/jump/dir.mp4").mkdir()
    os.mkfifo(videos / "train/run/pipe.mp4")
    (videos / "val/run/0.mp4").write_bytes(b"")  # the only one
    shutil.copy(videos / "train/jump/0.mp4", videos / "test/jump/leak.mp4")
    shutil.copy(videos / "train/run/1.mp4", videos / "train/run/twice.mp4")
    shutil.copy(videos / "train/run/2.mp4", videos / "train/jump/wrong.mp4")
    assert prepare(videos) == 1
    found = record(videos)
    assert not found["sound"]
    reasons = {Path(one["path"]).name: one["reason"] for one in found["unreadable"]}
    assert set(reasons) == {"bad.mp4", "dir.mp4", "pipe.mp4", "0.mp4"}
    assert reasons["dir.mp4"] == reasons["pipe.mp4"] == "it is no regular file"
    assert found["classes"]["jump"]["train"] == [6, 4]
    assert found["empty"] == [{"class": "run", "split": "val"}]
    (leak,) = found["leaks"]["content"]
    assert [Path(path).name for path in leak["train"] + leak["test"]] == ["0.mp4", "leak.mp4"]
    names = [{Path(path).name for path in one["videos"]} for one in found["repeated"]]
    assert sorted(map(sorted, names)) == [["1.mp4", "twice.mp4"], ["2.mp4", "wrong.mp4"]]
    (wrong,) = found["contradictory"]
    assert {v["class"] for v in wrong["videos"]} == {"jump", "run"}
    out = capsys.readouterr().out
    assert "Files that cannot be read: 4\n" in out
    assert "Classes without videos in a split: 1\n  run in val\n" in out
    assert "unsound: files that cannot be read: 4; leaks by content: 1;" in out
    page = (videos.parent / "out" / "report.md").read_text()
    assert "| jump | 6 (2) | 1 | 3 |" in page
    assert "pipe.mp4: it is no regular file" in page
    remarks = {Path(line["path"]).name: line["remark"] for line in table(videos)}
    assert remarks["pipe.mp4"] == "it is no regular file"


def test_files_that_kill_or_hang_are_named_and_the_cache_left(videos: Path, capsys, monkeypatch):
    digest = check._digest

    def deadly(path: str) -> str:
        if path.endswith("test/run/1.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        if path.endswith("test/jump/1.mp4"):
            time.sleep(60)
        return digest(path)

    monkeypatch.setattr(check, "_digest", deadly)
    assert prepare(videos, "--timeout=2", "data.cache=reencode") == 1
    found = record(videos)
    reasons = {one["path"][-15:]: one["reason"] for one in found["unreadable"]}
    assert reasons == {
        "test/jump/1.mp4": "given up after 2 s",
        "/test/run/1.mp4": "the process that read it died (SIGKILL: the memory was full?)",
    }
    assert sum(line["remark"] == "" for line in table(videos)) == 10
    assert "the cache is not filled; " in capsys.readouterr().out
    assert not list((videos.parent / "cache").glob("reencode*"))


def test_the_cache_is_filled_and_files_are_indexed(videos: Path):
    assert prepare(videos, "data.cache=reencode") == 0
    copies = list((videos.parent / "cache").glob("reencode_64px/*/*.mp4"))
    assert len(copies) == 12
    assert (videos.parent / "cache" / "index.db").is_file()


def test_shards_hold_what_can_be_read(videos: Path):
    pytest.importorskip("litdata")
    (videos / "train/jump/bad.mp4").write_text("no video")
    (videos / "train/jump/dir.mp4").mkdir()
    target = videos.parent / "shards"
    assert prepare(videos, f"--shards={target}", "--quick") == 1
    from regkit.data.shards import read_splits

    splits = read_splits(str(target), {})
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 2, 4]
    assert prepare(videos, f"--shards={target}", "--quick") == 2


def test_an_official_split_that_leaks_groups(write, tmp_path: Path, capsys):
    """HMDB51 keeps films apart within a class, not across classes."""
    for label in ("jump", "run"):
        lines = []
        for film in range(5):
            name = f"film{film}_{label}_x.avi"
            write(f"videos/{label}/{name}")
            lines.append(f"{name} {2 if (label == 'run') == (film == 0) else 1}")
        (tmp_path / "videos" / f"{label}_test_split1.txt").write_text("\n".join(lines))
    assert prepare(tmp_path / "videos", "data=hmdb51", "data.val_share=0.3") in (1, 2)
    found = record(tmp_path / "videos")
    assert "film0" in [leak["group"] for leak in found["leaks"]["group"]]
    assert any("group" in note for note in found["notes"])
    assert "note: HMDB51: group" in capsys.readouterr().err


def test_options_may_stand_between_overrides(videos: Path):
    assert prepare(videos, "--quick", "data.num_frames=21") == 0
    found = record(videos)
    assert (found["quick"], found["clip_frames"]) == (True, 21)
    assert found["short"] == {"train": 6, "val": 2, "test": 4}
    assert {line["decoded"] for line in table(videos)} == {""}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=folde"], "data=folde was given; close: folder. There are: "),
        (["data=folder"], "data.root was not given"),
        (["data=folder", "data.rot=x"], "close: data.root"),
        (["data=folder", "data.root=nowhere"], "Set data.root"),
        (["data=folder", "data.root=nowhere", "data.cache=all"], "got cache='all'"),
        (["foo"], "is no key=value"),
        (["data=made", "--workers=0"], "--workers got 0; give 1 or more"),
        (["data=made", "--timeout=0"], "--timeout got 0; give more than 0"),
        (["data=made", "--out=/proc/nowhere"], "--out got '/proc/nowhere'"),
        (["--slow"], "unrecognized arguments: --slow"),
    ],
)
def test_wrong_input_is_refused_in_a_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_the_report_goes_to_runs_by_default(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["data.num_train=12", "data.num_val=6", "data.num_test=6", "data.root=made"]
    assert main(["prepare", "data=made", *words, "--workers=2"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"prepare \d{4}-\d\d-\d\d_\d\d-\d\d-\d\d made", folder.name)
    assert f"report: {Path('runs', folder.name, 'report.md')}" in capsys.readouterr().out


# Whoever runs the tests in the background of a script has them ignore SIGINT.
INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from regkit.data.prepare import check
check._digest = lambda path: print("begun", flush=True) or time.sleep(60)
from regkit.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_an_interrupt_stops_at_once_and_leaves_nobody(videos: Path):
    words = ["prepare", "data=folder", f"data.root={videos}", f"data.cache_root={videos / 'c'}"]
    caller = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *words, "--workers=2", f"--out={videos / 'out'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "begun\n"
    os.killpg(caller.pid, signal.SIGINT)  # as a terminal does
    _, err = caller.communicate(timeout=30)  # files take 60 s, given up after 300
    assert caller.returncode == 130
    assert err.endswith("\nregkit: interrupted.\n")
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):  # nobody is left of the group
        os.killpg(caller.pid, 0)
    assert not list((videos / "out").iterdir())


def test_names_that_are_no_text_are_answered(videos: Path):
    odd = os.fsdecode(b"\xff |\n.mp4")
    shutil.copy(videos / "train/jump/0.mp4", videos / "train/jump" / odd)
    assert prepare(videos) in (0, 1)
    content = (videos.parent / "out" / "files.csv").read_bytes()
    assert b"/jump/\xff |\n.mp4" in content
    assert "\\udcff |\\n.mp4" in (videos.parent / "out" / "report.md").read_text()
    assert not active_children()
