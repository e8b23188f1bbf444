"""configs/hydra/launcher: they compose with train.yaml, and say what their plugins know."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from regkit.sweeps.launch import register_launches
from regkit.training.config import register

CONFIGS = Path(__file__).parents[2] / "configs"
LAUNCHERS = sorted(path.stem for path in (CONFIGS / "hydra" / "launcher").glob("*.yaml"))


def composed(*words: str) -> Any:
    register()
    register_launches()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(words), return_hydra_config=True).hydra


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_composes(launcher: str):
    hydra = composed(f"hydra/launcher={launcher}")
    assert hydra.launcher._target_.startswith("hydra_plugins.")
    assert hydra.runtime.choices["hydra/launcher"] == launcher


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_has_options_of_its_plugin(launcher: str):
    options = composed(f"hydra/launcher={launcher}").launcher
    room = ".".join(options._target_.split(".")[:2])
    try:
        importlib.import_module(options._target_.rpartition(".")[0])
    except ModuleNotFoundError:
        pytest.skip(f"{room} is not installed")
    if importlib.util.find_spec(f"{room}.config"):
        importlib.import_module(f"{room}.config")
    groups = ConfigStore.instance().repo["hydra"]["launcher"]
    schema = {node.node._target_: node.node for node in groups.values() if node.node is not None}[
        options._target_
    ]
    assert set(options) <= set(schema)
    typed = OmegaConf.merge(schema, {k: v for k, v in options.items() if "${" not in str(v)})
    assert typed._target_ == options._target_


@pytest.mark.parametrize(
    ("words", "num_jobs"),
    [
        ((), 1),
        (("hydra/launcher=parallel",), 2),
        (("hydra/launcher=parallel", "hydra.launcher.n_jobs=6"), 6),
        (("hydra/launcher=slurm",), 1),
        (("hydra/launcher=slurm", "hydra.sweeper.num_jobs=4"), 4),
    ],
)
def test_a_search_asks_for_as_many_jobs_as_run_at_a_time(words: tuple[str, ...], num_jobs: int):
    assert composed("hydra/sweeper=optuna", *words).sweeper.num_jobs == num_jobs


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_has_a_name_of_its_own(launcher: str):
    """Else Hydra takes the plugin's for the schema of ours, warns, and refuses what is global."""
    assert launcher not in {"joblib", "submitit_local", "submitit_slurm", "ray", "rq", "basic"}


def test_jobs_of_joblib_take_turns_on_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    hydra = composed("hydra/launcher=parallel", "++hydra.job.num=3")
    setup_globals()
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    assert hydra.job.env_set.CUDA_VISIBLE_DEVICES == "7"
