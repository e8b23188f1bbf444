"""The verb: from videos to a folder, and from that folder to a stream."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from blobs import travelling
from PIL import Image

from regkit.__main__ import main
from regkit.baseline import solver
from regkit.baseline.detector import load
from regkit.data.decode import read_frames
from regkit.data.made import write_video
from regkit.training.runs import find_runs

TWO = {"left": (-1.0, 0.0), "right": (1.0, 0.0)}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write blobs that go left and right, nine groups of them."""
    folder = tmp_path_factory.mktemp("films")
    for name, velocity in TWO.items():
        (folder / name).mkdir()
        for number in range(9):
            write_video(
                folder / name / f"G{number}__{name}.mp4", travelling(*velocity, seed=number)
            )
    return folder


@pytest.fixture
def words(tmp_path: Path, films: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Copy the films, and say in words where they are."""
    monkeypatch.setattr(solver, "TOLERANCE", 0.05)  # how exact a fit is, test_hog_solver.py asks
    shutil.copytree(films, tmp_path / "films")
    return [
        *("data=folder", f"data.root={tmp_path / 'films'}", r"data.group='(G\d)__'"),
        *("data.size_px=32", "data.num_frames=8", "data.num_workers=0"),
        *("data.val_groups=[G3,G4]", "data.test_groups=[G5,G6]"),
        f"data.cache_root={tmp_path / 'cache'}",
        *("--lams", "3", "--lam-min-ratio", "0.4"),
    ]


def test_it_tells_left_from_right(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    film = tmp_path / "films" / "left" / "G5__left.mp4"
    assert main(["hog", *words, "--out", str(out), "--watch", str(film)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["test_accuracy"], summary["val_accuracy"]) == (1.0, 1.0)
    assert summary["num_val"] == 4
    assert 0 < summary["live_groups"] < summary["num_groups"] == 4 * 4 * 4 * 17
    assert f"{summary['live_groups']} of 1088 features in use" in printed
    assert "x real time on one core" in printed
    assert "s  left  " in printed
    assert "frames a second" in printed

    detector = load(out / "hog.json")
    assert detector.step_s == pytest.approx(2 / 8)  # every second frame of 8 a second
    assert len(detector.places) == summary["live_groups"]
    for name in TWO:  # what was written answers as the summary says
        path = tmp_path / "films" / name / f"G6__{name}.mp4"
        values = detector.features.clip(read_frames(path, range(1, 16, 2), 32))
        best = int(detector.probabilities(values[None]).argmax())
        assert detector.classes[best] == name
    for name in ("path.png", "features.png"):
        with Image.open(out / name) as image:
            assert np.asarray(image.convert("L")).std() > 5

    (run,) = find_runs([out])
    assert (run.status, run.recipe["model"]["_target_"]) == ("done", "hog")
    assert run.recipe["data"]["val_groups"] == ["G3", "G4"]


def test_a_detector_watches_without_data(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    assert main(["hog", *words, "--out", str(out)]) == 0
    capsys.readouterr()
    film = tmp_path / "films" / "right" / "G6__right.mp4"
    assert main(["hog", "--detector", str(out / "hog.json"), "--watch", str(film)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["1.75", "s", "right"]
    assert lines[-1].startswith("16 frames (8 of them described, 0.25 s apart)")


def test_folds_choose_where_they_are_asked_for(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    asked = [*words, "data.cv_folds=3", "--out", str(out)]
    assert main(["hog", *asked]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_val"] == 14  # training and validation
    assert "least mean error" in capsys.readouterr().out


def test_bad_files_are_told_or_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "films" / "left" / "G5__left.mp4").write_text("no video")
    out = tmp_path / "out"
    assert main(["hog", *words, "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["files_skipped"] == 1
    assert main(["hog", *words, "data.on_error=raise", "--out", str(out)]) == 2
    assert "G5__left.mp4" in capsys.readouterr().err
    for name in ("G3", "G4"):
        for way in TWO:
            (tmp_path / "films" / way / f"{name}__{way}.mp4").write_text("no video")
    assert main(["hog", *words, "--out", str(out)]) == 2
    assert "none of the 4 val videos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["model=r3d_18"], "hog got model=r3d_18"),
        (["data.num_frames=4"], "data.num_frames=5"),
        (["--cells", "1"], "--cells got 1"),
        (["--lam-min-ratio", "2"], "lam_min_ratio=2"),
        (["--detector", "hog.json"], "give --watch VIDEO"),
        (["--detector", "none.json", "--watch", "a.mp4"], "none.json, which is no hog.json"),
    ],
)
def test_wrong_options_are_refused(
    asked: list[str],
    said: str,
    words: list[str],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
):
    given = asked if "--detector" in asked else [*words, *asked, "--out", str(tmp_path / "out")]
    assert main(["hog", *given]) == 2
    assert said in capsys.readouterr().err
