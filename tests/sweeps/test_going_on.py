"""Sweeps, cross-validation and paths that are killed go on: nothing repeated, nothing lost."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import TRAIN, Program

QUICK = [
    *("data.num_train=24", "data.num_val=12", "data.num_test=12", "data.num_workers=0"),
    *("trainer.enable_progress_bar=false", "trainer.max_epochs=3", "model.dropout=0.2"),
]


def start(folder: Path, *words: str) -> Program:
    return Program(TRAIN, *words, folder=folder, XDG_CACHE_HOME=str(folder / "cache"))


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    return start(folder, *words).communicate(timeout=400)


def killed(folder: Path, sign: str, *words: str) -> None:
    """Start a program and kill it as soon as a file that fits `sign` is there."""
    process = start(folder, *words)
    deadline = time.time() + 300
    while not list(folder.glob(sign)) and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate(timeout=1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def summaries(folder: Path) -> dict[str, dict[str, Any]]:
    found = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/summary.json")}
    return {n: {k: v for k, v in s.items() if k[-2:] != "_s"} for n, s in found.items()}


def same(one: Path, two: Path) -> None:
    """Hold all runs in one folder against those in the other, to the last bit."""
    first, second = summaries(one), summaries(two)
    assert first.keys() == second.keys()
    for name, summary in first.items():
        unlike = {"data_share"}
        assert {k: v for k, v in summary.items() if k not in unlike} == {
            k: v for k, v in second[name].items() if k not in unlike
        }
        ours, theirs = (weights(f / name / "checkpoints/last.ckpt") for f in (one, two))
        assert all(torch.equal(w, theirs[key]) for key, w in ours.items())


@pytest.mark.slow
def test_cross_validation_goes_on_after_a_kill(tmp_path: Path):
    """Two strengths, two folds, a refit; killed within the second job, then within the refit."""
    words = ["-cn", "cv", "penalty=l1", "lam=1e-3,1e-2", "data.cv_folds=2", *QUICK]
    code, out, err = run(tmp_path, *words, "hydra.sweep.dir=whole")
    assert code == 0, err
    assert "Cross-validation over 2 folds" in out
    runs = summaries(tmp_path / "whole")
    assert len(runs) == 5
    refit = next(s for name, s in runs.items() if name.startswith("refit "))
    assert refit["val_accuracy"] is None
    assert refit["num_val"] == 0

    killed(tmp_path, "cut/*cv_fold=2/checkpoints/last.ckpt", *words, "hydra.sweep.dir=cut")
    done = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cut/*/summary.json")}
    assert len(done) == 1
    killed(tmp_path, "cut/refit*/checkpoints/last.ckpt", "resume=cut")
    assert len(summaries(tmp_path / "cut")) == 4
    code, out, err = run(tmp_path, "resume=cut")
    assert code == 0, err
    assert out.count("done already") == 4
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in done.items())
    same(tmp_path / "whole", tmp_path / "cut")
    one, two = (
        json.loads((tmp_path / d / "conclusion.json").read_text()) for d in ("whole", "cut")
    )
    assert one["means"] == two["means"]
    assert one["chosen"] == two["chosen"]
    for made in ("cv.png", "stability.png", "report/report.html"):
        assert (tmp_path / "cut" / made).is_file()


@pytest.mark.slow
def test_a_path_goes_on_after_a_kill(tmp_path: Path):
    words = ["-cn", "path", "penalty=l1", "grid.num=3", "grid.high=1e-3", "path.epochs=2", *QUICK]
    words.append("debias_epochs=2")
    code, _, err = run(tmp_path, *words, "hydra.run.dir=whole")
    assert code == 0, err
    points = summaries(tmp_path / "whole")
    assert [*sorted(points)] == ["lam=1e-3", "lam=1e-4", "lam=1e-5"]
    assert [points[f"lam=1e-{k}"]["epochs"] for k in (5, 4, 3)] == [3, 2, 2]
    assert all(p["debiased_accuracy"] is not None for p in points.values())

    killed(tmp_path, "cut/lam=1e-4/checkpoints/last.ckpt", *words, "hydra.run.dir=cut")
    assert len(summaries(tmp_path / "cut")) == 1
    killed(tmp_path, "cut/lam=1e-3/checkpoints/debiased.ckpt", "resume=cut")
    code, out, err = run(tmp_path, "resume=cut")
    assert code == 0, err
    assert out.count("done already") == 2
    same(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "cut/path.png").is_file()


def test_a_failed_job_leaves_the_others_alone(tmp_path: Path):
    words = ["-m", "penalty=l1", "lam=1e-3", "model.dropout=0.1,7", *QUICK[:-1]]
    code, _, err = run(tmp_path, *words, "hydra.sweep.dir=sweep")
    assert code == 1
    assert "1 of 2 jobs failed" in err
    assert "Tiny3D got dropout=7" in err
    assert "Traceback" not in err
    assert len(summaries(tmp_path / "sweep")) == 1
    assert "dropout=7" in (tmp_path / "sweep/l1 lam=1e-3 dropout=7/failed.txt").read_text()
    page = (tmp_path / "sweep/report/report.html").read_text()
    assert "Tiny3D got dropout=7" in page


def test_nothing_to_go_on_with_is_said(tmp_path: Path):
    code, _, err = run(tmp_path, "resume=nowhere")
    assert code == 2
    assert "no run and no sweep was started" in err
    assert "Traceback" not in err
