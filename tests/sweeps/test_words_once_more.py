"""The words that started a run or a sweep, once more."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from regkit import InputError
from regkit.sweeps.job import resumed


def hydra(words: list[str], own: list[str], name: str = "train") -> dict:
    rest = {"job": {"config_name": name}, "runtime": {"config_sources": []}}
    return {"hydra": {"overrides": {"task": words, "hydra": own}, **rest}}


def test_words_without_resume_are_kept():
    assert resumed(["penalty=l1", "-m"]) == ["penalty=l1", "-m"]


def test_a_sweep_goes_on_as_it_was_launched(tmp_path: Path):
    words = ["penalty=l1,l2", "lam=path"]
    own = ["hydra/launcher=joblib", "hydra.sweep.dir=elsewhere", "hydra.mode=MULTIRUN"]
    OmegaConf.save(hydra(words, own, "cv"), tmp_path / "multirun.yaml")
    assert resumed([f"resume={tmp_path}", "trainer.devices=1"]) == [
        *("-m", "-cn", "cv", "hydra/launcher=joblib", *words),
        *(f"hydra.sweep.dir='{tmp_path}'", "trainer.devices=1"),
    ]


def test_one_job_of_a_sweep_goes_on_alone(tmp_path: Path):
    (tmp_path / "config").mkdir()
    own = ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.sweeper.params.a=1"]
    OmegaConf.save(hydra(["lam=1"], own), tmp_path / "config/hydra.yaml")
    assert resumed([f"resume='{tmp_path}'"]) == [
        *("-cn", "train", "lam=1", f"hydra.run.dir='{tmp_path}'"),
    ]


def test_what_was_never_started_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no run and no sweep was started"):
        resumed([f"resume={tmp_path}"])
    (tmp_path / "multirun.yaml").write_text("hydra: [")
    with pytest.raises(InputError, match="cannot be read as Hydra wrote it"):
        resumed([f"resume={tmp_path}"])
