"""One run, in this process: warm starts, debiasing, strengths that are found, runs at their end."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from regkit import InputError
from regkit.lightning.video_classifier import VideoClassifier
from regkit.selection.grid import two_digits
from regkit.training.config import make, register
from regkit.training.fit import fit, refuse_missing_devices
from regkit.training.resolve_lam import grid, resolve_auto_lam

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = [
    *("data.num_train=24", "data.num_val=12", "data.num_test=12", "data.num_workers=0"),
    *("trainer.enable_progress_bar=false", "trainer.max_epochs=2", "trainer.accelerator=cpu"),
]

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, few batches


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "fit cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def composed(*words: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=[*QUICK, *words])
    with open_dict(config):
        config.name = "a run"
    return config


def run(folder: Path, *words: str) -> dict[str, Any]:
    return fit(composed(*words), folder)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def test_a_warm_start_begins_with_the_weights_of_another_run(tmp_path: Path):
    run(tmp_path / "one", "penalty=none")
    start = f"warm_start={tmp_path / 'one/checkpoints/last.ckpt'}"
    run(tmp_path / "two", "penalty=none", "seed=1", "optimizer.lr=0", "scheduler=none", start)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    names = [name for name, w in one.items() if w.ndim > 1]
    assert names
    assert all(torch.equal(one[name], two[name]) for name in names)


def test_a_warm_start_has_to_fit(tmp_path: Path):
    with pytest.raises(InputError, match="there is no such file"):
        run(tmp_path / "gone", "warm_start=nowhere.ckpt")
    run(tmp_path / "one", "penalty=none", "trainer.max_epochs=1")
    start = f"warm_start={tmp_path / 'one/checkpoints/last.ckpt'}"
    with pytest.raises(InputError, match="does not fit this model"):
        run(tmp_path / "two", "model=cnn_gru", start)


@pytest.mark.parametrize(
    ("cores", "gpus", "words", "said"),
    [
        (4, 0, ["devices=99"], "devices=99 .*cpu.* room for 4 processes.*devices=4 or less"),
        (1, 0, ["devices=3", "accelerator=auto"], "devices=3 .*auto.* room for 2 processes"),
        (4, 0, ["devices='5'"], "devices=5 .* room for 4"),
        (4, 0, ["accelerator=gpu"], r"gpu, and there is no GPU. Give trainer.accelerator=cpu\."),
        (64, 1, ["devices=2", "accelerator=auto"], "devices=2 .*auto, and GPUs there are: 1"),
        (64, 2, ["devices=[0,2]", "accelerator=gpu"], r"devices=\[0, 2\] .*GPUs there are: 2"),
        (64, 2, ["devices='1,2'", "accelerator=cuda"], "devices=1,2 .*devices=2 or less or "),
    ],
)
def test_more_devices_than_there_are_are_refused_before_anything_starts(
    cores: int,
    gpus: int,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def started(*args: Any, **options: Any) -> None:
        raise AssertionError("something was made")

    monkeypatch.setattr("regkit.training.fit.make", started)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(InputError, match=said):
        run(tmp_path, *(f"trainer.{word}" for word in words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cores", "gpus", "devices", "accelerator"),
    [
        (1, 0, 2, "cpu"),  # two ranks of gloo, on any machine
        (8, 0, 8, "auto"),
        (1, 0, "auto", "auto"),
        (1, 0, -1, "gpu"),  # all there are, of which Lightning speaks
        (1, 4, 4, "auto"),
        (1, 4, "0,3", "gpu"),
        (1, 4, [3], "cuda"),
        (1, 4, None, "cuda"),
        (1, 0, 64, "tpu"),
    ],
)
def test_devices_that_there_are_pass(
    cores: int, gpus: int, devices: Any, accelerator: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    refuse_missing_devices({"devices": devices, "accelerator": accelerator})


def test_a_rank_of_torchrun_may_see_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    refuse_missing_devices({"devices": 4, "accelerator": "gpu"})


def test_debiasing_leaves_zeros_and_moves_the_rest(tmp_path: Path):
    summary = run(tmp_path, "penalty=l1", "lam=0.05", "debias_epochs=2")
    before, after = weights(tmp_path), weights(tmp_path, "debiased")
    penalised = [name for name, w in before.items() if w.ndim > 1]
    for name in penalised:
        assert (after[name][before[name] == 0] == 0).all()
    zeros = sum(int((before[name] == 0).sum()) for name in penalised)
    assert zeros > 1000
    alive = {name: before[name] != 0 for name in penalised}
    assert any(not torch.equal(before[n][m], after[n][m]) for n, m in alive.items())
    # Free of the penalty the weights grow; that is the bias.
    lengths = [sum(float(w[n].abs().sum()) for n in penalised) for w in (before, after)]
    assert lengths[1] > lengths[0]
    assert summary["debiased_val_accuracy"] is not None
    assert summary["density"] == pytest.approx(
        1 - zeros / sum(before[name].numel() for name in penalised)
    )


def test_lengths_of_filters_are_those_of_the_weights(tmp_path: Path):
    """Of those that are penalised: rows of the head are classes."""
    run(tmp_path, "penalty=group_lasso", "lam=0.03")
    saved = weights(tmp_path)
    with np.load(tmp_path / "groups.npz") as norms:
        filters = {name for name, w in saved.items() if w.ndim > 1}
        assert set(norms.files) == filters - {"net.head.1.weight"}
        for name in norms.files:
            by_hand = [float(row.double().square().sum().sqrt()) for row in saved[name]]
            np.testing.assert_allclose(norms[name], by_hand, rtol=1e-5)
            assert ((norms[name] == 0) == [bool((row == 0).all()) for row in saved[name]]).all()


def test_auto_is_a_tenth_of_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of L1 by hand: ln 6 over the sum of the first weights' sizes."""
    summary = run(tmp_path, "penalty=l1", "lam=auto", "trainer.max_epochs=1", "optimizer.lr=0")
    first = weights(tmp_path)  # a rate of 0 leaves them as they were
    psi = sum(float(w.abs().double().sum()) for w in first.values() if w.ndim > 1)
    assert summary["lam"] == pytest.approx(two_digits(0.1 * np.log(6) / psi), rel=1e-6)
    assert f"l1 takes lam={summary['lam']:g}" in capsys.readouterr().out
    again = fit(
        composed("penalty=l1", "lam=auto", "trainer.max_epochs=1", "optimizer.lr=0"), tmp_path
    )
    assert again == summary
    assert "done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.max_epochs=8"], "does little in 48 steps"),  # 6 batches of 4
        (["trainer.max_epochs=8", "trainer.accumulate_grad_batches=4"], "little in 16 steps"),
        (["trainer.max_epochs=500", "+trainer.max_steps=30"], "does little in 30 steps"),
        (["trainer.max_epochs=-1", "+trainer.max_steps=300"], None),
        (["trainer.max_epochs=-1", "+trainer.max_time='00:01:00:00'"], None),
        (["trainer.max_epochs=500"], None),
    ],
)
def test_auto_says_where_training_is_too_short_for_it(
    words: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
):
    config = composed("penalty=l1", "lam=auto", "data.batch_size=4", *words)
    data = make(config.data)
    data.prepare_data()
    data.setup()
    net = make(config.model, num_classes=data.num_classes)
    resolve_auto_lam(config, VideoClassifier(net, data.classes, make(config.optimizer)), data)
    shown = capsys.readouterr().out
    assert "l1 takes lam=" in shown
    assert ("does little" in shown) == (said is not None)
    assert said is None or said in shown


def test_auto_finds_each_penalty_its_own(tmp_path: Path):
    summary = run(
        tmp_path, "penalty=[l1,l2]", "lam=auto", "penalty.l1.params=head",
        "penalty.l2.params=features", "trainer.max_epochs=1",
    )  # fmt: skip
    assert summary["lams"]["l1"] != summary["lams"]["l2"]
    assert summary["lam"] == summary["lams"]["l1"]


def test_the_grid_is_the_same_for_every_seed(capsys: pytest.CaptureFixture[str]):
    words = ["penalty=group_lasso", "lam=path", "grid.num=4", "grid.lam_min_ratio=1e-3"]
    lams = grid(composed(*words))
    assert lams == grid(composed(*words, "seed=3"))
    assert "lam=path: " in capsys.readouterr().out
    ratios = np.divide(lams[:-1], lams[1:])
    np.testing.assert_allclose(ratios, 10, rtol=0.06)  # two digits
    assert grid(composed(*words, "grid.high=1")) == [1.0, 0.1, 0.01, 0.001]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lam=path"], "lam=path is a grid"),
        (["penalty=weight_decay", "lam=auto"], "Give its lam as a number"),
        (["penalty=temporal", "lam=auto"], "are for penalties on weights"),
        (["debias_epochs=-1"], "debias_epochs=-1"),
        (["stop_dominated=halving"], "it is median"),
        (["data.cv_folds=2", "callbacks=early_stopping"], "early_stopping asks for validation"),
    ],
)
def test_mistakes_are_said(tmp_path: Path, words: list[str], said: str):
    with pytest.raises(InputError, match=said):
        run(tmp_path, *words)


def test_a_run_that_is_done_is_not_repeated(tmp_path: Path):
    words = ["penalty=l1", "scheduler=none"]
    summary = run(tmp_path, *words)
    written = (tmp_path / "checkpoints/last.ckpt").stat().st_mtime_ns
    assert run(tmp_path, *words, "trainer.log_every_n_steps=3") == summary
    assert (tmp_path / "checkpoints/last.ckpt").stat().st_mtime_ns == written
    longer = run(tmp_path, *words, "trainer.max_epochs=3")
    assert longer["epochs"] == 3
    with pytest.raises(InputError, match="another configuration"):
        run(tmp_path, "penalty=l2")
    assert json.loads((tmp_path / "summary.json").read_text()) == longer


def test_a_run_stopped_after_its_test_is_not_trained_again(tmp_path: Path):
    summary = run(tmp_path, "penalty=l1", "debias_epochs=1")
    stages = json.loads((tmp_path / "stages.json").read_text())
    stages["stages"]["test"]["train_s"] = 12345.0
    debiased = stages["stages"].pop("debias")
    (tmp_path / "stages.json").write_text(json.dumps(stages))
    (tmp_path / "summary.json").unlink()
    (tmp_path / "checkpoints/debiased.ckpt").unlink()
    again = run(tmp_path, "penalty=l1", "debias_epochs=1")
    assert again["train_s"] == 12345.0
    for key in debiased.keys() - {"debias_s"}:
        assert again[key] == summary[key]


def test_stages_of_another_recipe_do_not_count(tmp_path: Path):
    """Nor what was debiased or cut out of other weights."""
    run(tmp_path, "penalty=l1", "scheduler=none", "shrink=true", "debias_epochs=1")
    before = weights(tmp_path, "debiased")
    run(tmp_path, "penalty=l1", "scheduler=none", "trainer.max_epochs=3")
    assert not (tmp_path / "checkpoints/shrunk.ckpt").exists()
    run(tmp_path, "penalty=l1", "scheduler=none", "trainer.max_epochs=3", "debias_epochs=1")
    after = weights(tmp_path, "debiased")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match=r"max_epochs=2 was given, and this run has trained for 3"):
        run(tmp_path, "penalty=l1", "scheduler=none")


def test_a_rate_that_is_too_large_is_told_in_one_line(tmp_path: Path):
    words = ["penalty=l1", "optimizer.lr=1e30"]
    with pytest.raises(InputError, match=r"Training diverged at step \d.*Try a tenth of optimizer"):
        run(tmp_path / "stops", *words)
    summary = run(tmp_path / "goes on", *words, "on_divergence=warn", "shrink=false")
    assert summary["loss"] is None
    text = (tmp_path / "goes on/summary.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == summary


LINE = (
    r"epoch (\d)/2  loss \d\.\d{3}  val accuracy \d\.\d{3}  density 0\.\d{3}  "
    r"flips \d+\.\d\d%  \d+\.\d s"
)


def test_what_is_no_terminal_gets_a_line_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "regkit.training.progress")
    # Flips are known after 22 steps.
    words = ["penalty=l1", "lam=0.05", "data.batch_size=1", "trainer.enable_progress_bar=true"]
    run(tmp_path, *words, "debias_epochs=1")
    shown = capsys.readouterr()
    assert re.findall(LINE, shown.out) == ["1", "2"]
    assert len(re.findall("(?m)^debias epoch 1/1  loss", shown.out)) == 1
    assert "%|" not in shown.out + shown.err
    assert shown.out.count("\r") == 0
    told = [one.message for one in caplog.records if one.name == "regkit.training.progress"]
    assert told == re.findall("(?m)^.*epoch .*$", shown.out)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_terminal_shows_one_calm_bar_unless_told_not_to(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    enabled: bool,
):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    run(tmp_path, "penalty=l1", "shrink=true", f"trainer.enable_progress_bar={enabled}")
    shown = capsys.readouterr()
    assert shown.out.count("epoch ") == (0 if enabled else 2)
    assert "%|" not in shown.out
    *_, last = shown.err.rstrip().split("\r")
    if enabled:
        assert re.match(r"epoch 2/2: 100%\|.*loss \d.*val accuracy \d.*density \d", last)
        assert len(shown.err) < 2000
        assert shown.err.count("\n") == 1
    else:
        assert "%|" not in shown.err
