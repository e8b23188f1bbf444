"""A search on joblib, one of whose jobs is killed."""

import json
from pathlib import Path

import pytest
from toy_sweep import run, starts

pytest.importorskip("optuna")
pytest.importorskip("hydra_plugins.hydra_joblib_launcher")


@pytest.mark.slow
def test_a_killed_job_leaves_the_others_alone(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    words = ("penalty=good,bad", "ends=kill", "hydra/launcher=parallel")
    options = ("hydra.sweeper.num_trials=2", "hydra.sweeper.sampler=random", "hydra.sweeper.seed=1")
    code, printed = run(tmp_path, *words, *options)
    assert code == 1
    assert "its process was lost" in printed
    assert "launched again" in printed
    begun = {(number, gpu) for number, _, gpu in starts(tmp_path)}
    assert begun == {("0", "3"), ("1", "5")}
    done = [path.parent.name for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert done == ["good lam=1e-3"]
    conclusion = json.loads((tmp_path / "sweep" / "conclusion.json").read_text())
    assert (conclusion["trials"], conclusion["failed"]) == (2, 1)
