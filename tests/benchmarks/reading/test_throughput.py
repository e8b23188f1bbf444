"""The verb as a whole: table, file and picture; and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from small_films import TINY

from regkit.__main__ import main
from regkit.benchmarks.harness import machine, read
from regkit.benchmarks.reading import candidates as contestants
from regkit.benchmarks.reading import films
from regkit.benchmarks.reading.candidates import (
    MEMMAP,
    ONE_READING,
    PYAV,
    REENCODE,
    TEN_READINGS,
    TORCHCODEC,
    WHOLE,
)
from regkit.benchmarks.reading.report import Memory, Report, everything
from regkit.cli import throughput as command
from regkit.errors import InputError
from regkit.timing import Quartiles

QUICK = ["--clip", "4", "--short-px", "16", "--rounds", "2", "--clips", "2"]


def throughput(*arguments: str) -> int:
    return main(["throughput", *QUICK, *arguments])


def test_a_run_prints_writes_and_draws(tiny, tmp_path, capsys):
    out, picture = tmp_path / "run.json", tmp_path / "run.png"
    assert throughput(str(tiny), "--out", str(out), "--picture", str(picture)) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert picture.read_bytes().startswith(b"\x89PNG")

    found = read(Report, out)
    assert printed.splitlines() == list(everything(found))
    assert {"cpu", "cores", "av", "torchcodec", "torch", "date"} <= found.machine.keys()
    assert found.options == {
        "clip": 4,
        "stride": 2,
        "short_px": 16,
        "rounds": 2,
        "clips": 2,
        "sampling": ["dense", "uniform"],
        "threads": 1,
    }
    (facts,) = found.films
    assert (facts.name, facts.num_files, facts.codec) == (tiny.name, 1, "h264")
    assert (facts.width_px, facts.height_px, facts.frames, facts.keyframes) == (96, 64, 30, 6)
    assert facts.seconds == pytest.approx(1.2)
    assert facts.mib == tiny.stat().st_size / 2**20
    assert facts.copies_mib["memmap"] == pytest.approx(30 * 16 * 24 * 3 / 2**20, rel=0.1)

    heats = dict.fromkeys(row.heat for row in found.rows)
    assert list(heats) == ["dense", "uniform", "views", "threads"]
    names = [row.contestant for row in found.rows if row.heat == "uniform"]
    assert [name for name in names if name in (WHOLE, PYAV, REENCODE, MEMMAP)] == [
        *(WHOLE, PYAV, REENCODE, MEMMAP)
    ]
    for row in found.rows:
        assert row.faster[next(iter(row.faster))].keys() == row.ms.keys() == {"cpu", "wall"}
        if row.heat in ("dense", "uniform"):
            others = {WHOLE, PYAV, *([] if "torchcodec" in found.left_out else [TORCHCODEC])}
            assert row.faster.keys() == others
        if row.heat == "views":
            assert row.contestant in (ONE_READING, TEN_READINGS)
    assert found.rows[0].faster[WHOLE]["cpu"] == Quartiles(1.0, 1.0, 1.0)


def test_what_was_written_is_shown_again(tiny, tmp_path, capsys):
    out, again, picture = (tmp_path / name for name in ("run.json", "again.json", "run.svg"))
    assert throughput(str(tiny), str(tiny), "--sampling", "uniform", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "2 files: 2 files, h264 96x64, 60 frames in 2.4 s" in printed
    assert main(["throughput", "--read", str(out), "--out", str(again)]) == 0
    assert capsys.readouterr().out == printed
    assert again.read_text() == out.read_text()
    assert main(["throughput", "--read", str(out), "--picture", str(picture)]) == 0
    assert "regkit, memmap" in picture.read_text()


def test_without_files_films_are_made(tmp_path, monkeypatch, capsys):
    kinds = (TINY, films.Kind(64, 48, 30, 250))
    monkeypatch.setattr(films, "KINDS", kinds)
    monkeypatch.setattr(films, "SECONDS", 0.5)
    monkeypatch.setattr(contestants, "others", lambda film, task: [])
    assert throughput("--sampling", "dense", "--out", str(tmp_path / "run.json")) == 0
    names = [facts.name for facts in read(Report, tmp_path / "run.json").films]
    assert names == ["96x64_25fps_key6", "64x48_30fps_key250"]


def test_memory_is_measured_on_a_long_film(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(path, task, readers):
        asked.append((films.read_timeline(path).duration_s, readers))
        yield Memory("pyav, one clip", 300.0, 20.0)

    monkeypatch.setattr(films, "LONG", TINY)
    monkeypatch.setattr(films, "SECONDS", 0.6)
    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "absent", lambda: {"torchcodec": "no FFmpeg"})
    out = tmp_path / "run.json"
    assert main(["throughput", "--rounds", "0", "--memory", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Left out: torchcodec. no FFmpeg." in printed
    assert "pyav, one clip" in printed
    assert read(Report, out).memory == [Memory("pyav, one clip", 300.0, 20.0)]
    assert read(Report, out).rows == []
    ((seconds, readers),) = asked
    assert (seconds, readers) == (pytest.approx(60 * 0.6), ["pyav"])


def test_threads_are_set_and_given_back(tiny, tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def heats(film, task, *others):
        seen.append((torch.get_num_threads(), task.threads))
        return []

    monkeypatch.setattr(command, "contest", heats)
    assert throughput(str(tiny), "--threads", "3") == 0
    assert seen == [(3, 3)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clip", "0"], "--clip got 0; give 1 or more"),
        (["--stride", "0"], "--stride got 0; give 1 or more"),
        (["--short-px", "1"], "--short-px got 1; give 2 or more"),
        (["--clips", "0"], "--clips got 0; give 1 or more"),
        (["--threads", "-1"], "--threads got -1; give 0 or more"),
        (["--rounds", "1"], "--rounds got 1; give 2 or more, or 0 together with --memory"),
        (["--rounds", "0"], "--rounds got 0; give 2 or more, or 0 together with --memory"),
        (["--rounds", "0", "--memory", "--picture", "x.png"], "--picture draws what --rounds"),
        (["--sampling", "all"], "invalid choice: 'all'"),
        (["/no/such.mp4"], "throughput cannot read /no/such.mp4: FileNotFoundError"),
        ([__file__], "test_throughput.py: InvalidDataError"),
        (["--out", "/no/such/folder/run.json"], "--out got /no/such/folder/run.json"),
        (["--out", "/"], "--out got /, which is a folder"),
        (["--picture", "run.bmp"], "--picture got run.bmp; give a file that ends in .png"),
        (["--read", "/no/such/run.json"], "--read got /no/such/run.json, which is no file that"),
        (["--read", __file__], "which is no file that --out wrote (JSONDecodeError"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert throughput(*arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_a_file_of_other_figures_is_refused(tmp_path: Path):
    text = json.dumps({"films": [], "rows": [{"ms": 3}], "memory": []})
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=r"--read got .*other\.json, which is no file that"):
        read(Report, tmp_path / "other.json")


def test_a_file_too_long_to_read_whole_is_refused(tiny, monkeypatch, capsys):
    monkeypatch.setattr(films, "MOST_BYTES", 30 * 96 * 64 * 3 - 1)
    assert throughput(str(tiny)) == 2
    assert "whose frames take 0.0 GiB at once" in capsys.readouterr().err


def test_the_kept_figures_can_be_read():
    """Of the machine they say nothing but its kind."""
    kept = sorted((Path(__file__).parents[2] / "benchmarks").glob("throughput*.json"))
    assert kept
    for path in kept:
        assert read(Report, path).machine.keys() == machine(command.PACKAGES, cores=1).keys()
