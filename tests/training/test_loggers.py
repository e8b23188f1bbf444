"""Loggers and callbacks by configuration: the folders configs/logger and configs/callbacks."""

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger
from omegaconf import DictConfig, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regkit import InputError
from regkit.lightning.loggers import show
from regkit.training.config import make, register
from regkit.training.fit import fit
from regkit.training.loggers import hparams, make_loggers
from regkit.training.overrides import checked

CONFIGS = Path(__file__).parents[2] / "configs"
LOGGERS = sorted(path.stem for path in (CONFIGS / "logger").glob("*.yaml"))
CALLBACKS = sorted({path.stem for path in (CONFIGS / "callbacks").glob("*.yaml")} - {"none"})
OPTIONAL = {"wandb", "mlflow"}
QUICK = [
    *("data.num_train=24", "data.num_val=12", "data.num_test=12", "data.num_workers=0"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"),
]

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, few batches


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "fit cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{cache.parent}/mlflow.db")


@pytest.fixture
def sweep() -> Iterator[DictConfig]:
    """Compose a job of a sweep, as Hydra tells it that it is one."""
    register()
    words = ["optimizer.lr=0.01", "data.augment.flip=0.5", "model=tiny3d", "logger=csv"]
    words += ["penalty=l1", "penalty.l1.lam=1e-3", "name='a b'", "hydra.mode=MULTIRUN"]
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", words, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    yield config
    HydraConfig.instance().cfg = before


def composed(*words: str) -> DictConfig:
    words_checked = checked([*QUICK, *words], "train", None, swept=False)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", words_checked)
    with open_dict(config):
        config.name = "a run"
    return config


@pytest.mark.parametrize("name", LOGGERS)
def test_each_logger_is_made_or_says_what_to_install(name: str, tmp_path: Path):
    config = composed(f"logger={name}")
    if name in OPTIONAL and importlib.util.find_spec(name) is None:
        with pytest.raises(InputError, match=rf'{name}, .*pip install "regkit\[{name}\]"'):
            make_loggers(config, tmp_path)
        return
    (logger,) = make_loggers(config, tmp_path)
    assert isinstance(logger, pl.loggers.Logger)


@pytest.mark.parametrize("name", CALLBACKS)
def test_each_callback_is_made(name: str):
    config = composed(f"callbacks={name}")
    assert isinstance(make(config.callbacks[name]), pl.Callback)


def test_curves_go_where_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fit(composed("logger=[tensorboard,csv]", "debias_epochs=1"), tmp_path)
    with (tmp_path / "csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag in ("train/loss", "val/acc", "density/total", "test/acc"):
        kept = [float(row[tag]) for row in rows if row[tag]]
        shown = [event.value for event in events.Scalars(tag)]
        assert kept == pytest.approx(shown)
        assert kept
    assert (tmp_path / "debias/csv/version_0/metrics.csv").is_file()
    assert f"CSVLogger takes no pictures; they are files in {tmp_path}" in capsys.readouterr().out


def test_without_tensorboard_a_run_is_whole_and_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And ends early where a callback of the user's says so: nothing is learned at a rate of 0."""
    words = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
    rest = ["logger=csv", "optimizer.lr=0", "scheduler=none", "trainer.max_epochs=5"]
    assert fit(composed(*words, *rest), tmp_path)["epochs"] == 2
    assert "add logger=tensorboard" in capsys.readouterr().out
    assert (tmp_path / "density.png").is_file()
    assert not list(tmp_path.rglob("events.out*"))


def test_what_is_no_callback_is_refused(tmp_path: Path):
    config = composed()
    with open_dict(config):
        config.callbacks.mine = {"_target_": "torch.nn.ReLU"}
    with pytest.raises(InputError, match=r"callbacks.mine makes a ReLU; .*lightning.pytorch.Call"):
        fit(config, tmp_path)


def test_hparams_has_what_a_sweep_was_asked_for(sweep: DictConfig):
    found = hparams(sweep)
    assert found == {
        "penalty": "l1",
        "lam": 1e-3,
        "seed": 0,
        "model": "Tiny3D",
        "optimizer": "AdamW",
        "optimizer.lr": 0.01,
        "data.augment.flip": 0.5,
    }


def test_pictures_reach_who_takes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """W&B and MLflow are stood in for: they would need servers."""
    got: list[Any] = []

    class Client:
        def log_image(self, *args: Any) -> None:
            got.append(args)

    wandb, mlflow = object.__new__(WandbLogger), object.__new__(MLFlowLogger)
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, *args: got.append(args))
    monkeypatch.setattr(MLFlowLogger, "experiment", Client())
    monkeypatch.setattr(MLFlowLogger, "run_id", "an id")
    loggers = [wandb, mlflow, CSVLogger(str(tmp_path))]
    trainer = pl.Trainer(logger=loggers, accelerator="cpu", enable_progress_bar=False)
    picture = np.zeros((4, 5, 3), dtype=np.uint8)
    show(trainer, "val/confusion", picture)
    assert got == [("val/confusion", [picture], 0), ("an id", picture, "val/confusion/0.png")]
