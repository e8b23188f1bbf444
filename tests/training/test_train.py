"""train.py as a user runs it: real files, real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import TRAIN, Program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regkit.data.made import write_video

QUICK = [
    "data.num_train=24",
    "data.num_val=12",
    "data.num_test=12",
    "data.num_workers=1",
    "trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a place to run in, with a cache of its own."""
    return tmp_path_factory.mktemp("train")


def start(folder: Path, *arguments: str, made: bool = True) -> Program:
    words = sorted([*(QUICK if made else QUICK[3:]), *arguments], key=lambda a: a != "-m")
    return Program(TRAIN, *words, folder=folder, XDG_CACHE_HOME=str(folder / "cache"))


def run(folder: Path, *arguments: str, made: bool = True) -> tuple[int, str, str]:
    return start(folder, *arguments, made=made).communicate(timeout=300)


def succeed(folder: Path, where: str, *arguments: str, made: bool = True) -> dict[str, Any]:
    """Run into the folder `where` and return the summary."""
    code, _, err = run(folder, f"hydra.run.dir={where}", *arguments, made=made)
    assert code == 0, err
    return json.loads((folder / where / "summary.json").read_text())


def succeed_anew(folder: Path, where: str, *arguments: str) -> dict[str, Any]:
    """Do so in a new interpreter, which imports all."""
    done = subprocess.run(
        [sys.executable, TRAIN, *QUICK, f"hydra.run.dir={where}", *arguments],
        cwd=folder,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / where / "summary.json").read_text())


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_leaves_what_was_promised(folder: Path):
    summary = succeed_anew(
        folder, "promised", "penalty=[l1,temporal]", "lam=0.02", "penalty.temporal.lam=0.1",
        "trainer.max_epochs=4", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    wanted = (
        "penalty lam seed test_accuracy test_macro_accuracy val_accuracy objective loss density "
        "live_groups roughness num_parameters steps train_s files_skipped data_share "
        "test_top5_accuracy views"
    )
    assert set(wanted.split()) <= summary.keys()
    assert summary["penalty"] == "l1+temporal"
    assert summary["lams"] == {"l1": 0.02, "temporal": 0.1}
    assert 0 < summary["density"] < 1
    assert summary["objective"] > summary["loss"]

    saved = weights(folder / "promised/checkpoints/last.ckpt")
    kernels = [w for name, w in saved.items() if w.ndim > 1]
    nonzero = sum(int((w != 0).sum()) for w in kernels) / sum(w.numel() for w in kernels)
    assert nonzero == pytest.approx(summary["density"])

    events = EventAccumulator(str(folder / "promised")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "objective/total", "objective/loss", "penalty/l1", "penalty/temporal", "lam/l1",
        "density/total", "density/live_groups", "train/loss", "train/acc", "val/acc", "val/loss",
        "val/acc_macro", "val/roughness", "test/acc", "speed/steps_per_s", "speed/prox_share",
        "speed/data_share", "lr-AdamW",
    } <= tags  # fmt: skip
    assert any(tag.startswith("density_layer/") for tag in tags)
    assert any(tag.startswith("val_class/") for tag in tags)
    log = (folder / "promised/train.log").read_text()
    assert [f"epoch {n}/4  loss" in log for n in (1, 2, 3, 4)] == [True] * 4
    assert f"  density {summary['density']:.4g}" in log.splitlines()[-1]
    assert (folder / "promised/config/config.yaml").is_file()
    assert (folder / "promised/checkpoints/best.ckpt").is_file()
    assert (folder / "promised/predictions.csv").is_file()
    assert (folder / "promised/confusion.png").is_file()
    assert {"val/confusion", "test/confusion"} <= set(events.Tags()["images"])


@pytest.mark.slow
def test_channels_go_until_the_density_is_met(folder: Path):
    """Which leaves a smaller net: a channel that is zero takes its readers with it."""
    summary = succeed(
        folder, "channels", "penalty=group_lasso", "penalty.group_lasso.groups=channel",
        "strength.target_density=0.5", "strength.debias=0.9", "trainer.max_epochs=20",
    )  # fmt: skip
    # A channel of the widest layer is 1.2 % of the weights.
    assert summary["density"] == pytest.approx(0.5, abs=0.013)
    assert summary["remaining_parameters"] < 0.5 * summary["num_parameters"]
    assert summary["remaining_flops"] < summary["flops"]
    assert summary["lams"]["group_lasso"] == 0.0
    events = EventAccumulator(str(folder / "channels")).Reload()
    acted = [point.value for point in events.Scalars("lam/group_lasso") if point.value > 0]
    assert summary["lam"] == pytest.approx(acted[-1], rel=0.5)  # it is read every 10 steps
    assert summary["lam"] != 1e-4  # where the search starts
    assert " lam=" not in summary["name"]
    assert {"groups/group_lasso", "objective/kkt"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rmda", "ramda"])
def test_dual_averaging_ends_sparse(folder: Path, optimizer: str):
    summary = succeed(
        folder, optimizer, f"optimizer={optimizer}", "optimizer.averaging=0.5", "penalty=l1",
        "lam=1e-2", "trainer.max_epochs=6",
    )  # fmt: skip
    assert 0 < summary["density"] < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 1])
def test_kill_and_resume_is_bitwise_the_uninterrupted_run(folder: Path, every: int | None):
    """Dropout, random frames and momentum all have to continue where they were.

    From the end of an epoch, and from within one: the first checkpoint is after one step of six.
    """
    options = ["penalty=l1", "lam=1e-3", "optimizer=sgd", "model.dropout=0.3", "data.batch_size=4"]
    epochs = "trainer.max_epochs=8"
    whole_run, killed_run = f"whole_{every}", f"killed lam=1e-3 {every}"
    succeed(folder, whole_run, *options, epochs)

    options += [] if every is None else [f"save_every_n_steps={every}"]
    process = start(folder, f"hydra.run.dir='{killed_run}'", *options, epochs)
    last = folder / killed_run / "checkpoints/last.ckpt"
    deadline = time.time() + 200
    while not last.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    reached = torch.load(last, weights_only=True)["epoch"]
    assert reached < 7, "the run was over before it was killed"
    assert not (last.parents[1] / "summary.json").exists()

    code, _, err = run(folder, *options, epochs, f"ckpt_path={last}")
    assert code == 0, err
    whole, resumed = weights(folder / whole_run / "checkpoints/last.ckpt"), weights(last)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    one, two = (
        json.loads((folder / name / "summary.json").read_text()) for name in (whole_run, killed_run)
    )
    same = ("test_accuracy", "val_accuracy", "density", "loss", "objective", "steps", "epochs")
    assert [one[key] for key in same] == [two[key] for key in same]

    code, _, err = run(folder, "penalty=none", f"ckpt_path={last}")
    assert code != 0
    assert "another configuration" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_no_strength_is_bitwise_no_penalty(folder: Path):
    succeed(folder, "none", "penalty=none", "trainer.max_epochs=2")
    succeed(folder, "zero", "penalty=[l1,temporal]", "lam=0", "trainer.max_epochs=2")
    none, zero = (weights(folder / name / "checkpoints/last.ckpt") for name in ("none", "zero"))
    assert all(torch.equal(none[name], zero[name]) for name in none)


def test_a_sweep_makes_comparable_runs(folder: Path):
    code, _, err = run(
        folder, "-m", "hydra.sweep.dir=sweep", "penalty=none,l1", "lam=1e-2",
        "trainer.max_epochs=1", "test_checkpoint=best", "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
    )  # fmt: skip
    assert code == 0, err
    names = sorted(p.name for p in (folder / "sweep").iterdir() if p.is_dir())
    assert [name for name in names if name not in ("comparison", "report")] == [
        "l1 lam=0.01",
        "none",
    ]
    assert (folder / "sweep/report/report.html").is_file()
    names = ["l1 lam=0.01", "none"]
    runs = [EventAccumulator(str(folder / "sweep" / name)).Reload() for name in names]
    shared = [
        {t for t in r.Tags()["scalars"] if not t.startswith(("lam", "penalty"))} for r in runs
    ]
    assert shared[0] == shared[1]
    assert "_hparams_/session_start_info" in runs[0].summary_metadata


@pytest.fixture(scope="module")
def clips(folder: Path) -> Path:
    """Write a user's folder of classes, three people, one corrupt file among them."""
    root = folder / "my videos"
    rng = np.random.default_rng(0)
    for label, way in (("left", 1), ("right", -1)):
        for person in range(3):
            for take in range(4):
                first = rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)
                frames = np.stack([np.roll(first, 2 * way * t, axis=1) for t in range(12)])
                path = root / label / f"P{person}__{take}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, frames)
    (root / "left" / "P0__broken.mp4").write_bytes(b"no video at all")
    return root


def test_a_folder_of_the_users_own(folder: Path, clips: Path):
    summary = succeed(
        folder, "own", "data=folder", f"data.root={clips}", r"data.group='(P\d)__'",
        "data.val_groups=[P1]", "data.test_groups=[P2]", "data.size_px=24", "data.num_frames=8",
        "model=cnn_gru", "penalty=elastic_net", "trainer.max_epochs=1", made=False,
    )  # fmt: skip
    assert summary["files_skipped"] == 1


SPIKY = """
from dataclasses import dataclass

from regkit.penalties.penalty import WeightPenalty


@dataclass(frozen=True)
class Spiky(WeightPenalty):
    def value(self, rows):
        return self.lam * rows.abs().sum()

    def prox(self, rows, step):
        return rows.sign() * (rows.abs() - step * self.lam).clamp(min=0)
"""


def test_a_penalty_of_the_users_own_and_its_strength(folder: Path):
    """A Python file and a YAML in any folder; regkit is not touched."""
    (folder / "mine/penalty").mkdir(parents=True)
    (folder / "mine/spiky.py").write_text(SPIKY)
    plug = "spiky: {_target_: spiky.Spiky, lam: '${lam}'}"
    (folder / "mine/penalty/spiky.yaml").write_text(plug)
    words = ["--config-dir=mine", "penalty=spiky", "penalty.spiky.lam=0.02"]
    code, _, err = run(folder, *words, "trainer.max_epochs=2", "hydra.run.dir=own_plug")
    assert code == 0, err
    summary = json.loads((folder / "own_plug/summary.json").read_text())
    assert summary["name"].startswith("spiky lam=0.02 ")
    assert summary["lam"] == 0.02
    assert 0 < summary["density"] < 1
    code, _, err = run(folder, "resume=own_plug")
    assert code == 2
    assert "was started with --config-dir" in err
    assert "give that folder again" in err
    code, out, err = run(folder, "--config-dir=mine", "resume=own_plug")
    assert code == 0, err
    assert "done already" in out


def interrupted(folder: Path, sign: str, *words: str) -> str:
    """Start a run, press Ctrl-C as soon as there is such a file, and return what is said."""
    process = start(folder, *words)
    deadline = time.time() + 200
    while not list(folder.glob(sign)) and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    for _ in range(3):  # as people do where the first falls into a call that swallows it
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        deadline = time.time() + 40
        while process.poll() is None and time.time() < deadline:
            time.sleep(0.05)
    code, _, err = process.communicate(timeout=100)
    assert code == 130, err
    assert "Traceback" not in err
    return err


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(folder: Path):
    words = ["penalty=l1", "trainer.max_epochs=12", "hydra.run.dir=stopped"]
    err = interrupted(folder, "stopped/checkpoints/last.ckpt", *words)
    assert err.endswith("\nregkit: stopped. To go on: regkit train resume=stopped\n")
    assert not (folder / "stopped/summary.json").exists()
    code, _, err = run(folder, "-m", "resume=stopped")
    assert (code, "is one run, and no sweep" in err) == (2, True)
    code, _, err = run(folder, "resume=stopped")
    assert code == 0, err
    assert json.loads((folder / "stopped/summary.json").read_text())["epochs"] == 12


@pytest.mark.slow
def test_ctrl_c_in_a_sweep_says_how_to_go_on_with_all_of_it(folder: Path):
    words = ["-m", "hydra.sweep.dir=cut short", "seed=0,1", "trainer.max_epochs=9"]
    err = interrupted(folder, "cut short/*/checkpoints/last.ckpt", *words)
    assert err.endswith("\nregkit: stopped. To go on: regkit train 'resume=cut short'\n")


@pytest.fixture(scope="module")
def refused(folder: Path, clips: Path) -> dict[str, tuple[int, str]]:
    """Make all mistakes."""
    (folder / "empty").mkdir()
    (folder / "single" / "only").mkdir(parents=True)
    (folder / "single/only/a.mp4").write_bytes(b"")
    own = ["data=folder", f"data.root={clips}"]
    mistakes = {
        "name": (["penalty=[l1,temporl]"], True),
        "negative": (["lam=-1"], True),
        "no number": (["lam=abc"], True),
        "missing root": (["data=folder", "data.root=nowhere"], False),
        "empty": (["data=folder", f"data.root={folder / 'empty'}"], False),
        "one class": (["data=folder", f"data.root={folder / 'single'}"], False),
        "in a sweep": (["-m", "seed=0,1", "penalty.l1.lamb=2"], True),
        "no such class": (["model._target_=regkit.models.tiny3d.Tiny4D"], True),
        "no checkpoint": (["ckpt_path=gone.ckpt"], True),
        "short clips": (["penalty=temporal", "model=s3d", "data.num_frames=1"], True),
        "no module": (
            [*own, "penalty=temporal", "penalty.temporal.module=encodr", "model=cnn_gru"],
            False,
        ),
    }
    answers = {}
    for name, (arguments, made) in mistakes.items():
        code, _, err = run(folder, *arguments, made=made)
        answers[name] = (code, err)
    return answers


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("name", "penalty=temporl was given; close: temporal. There are:"),
        ("negative", "lam is a number >= 0"),
        ("no number", "lam=abc was given; lam is a number >= 0, or auto"),
        ("missing root", "nowhere"),
        ("empty", "empty"),
        ("one class", "found only the class 'only'"),
        ("in a sweep", "there is no such option; close: penalty.l1.lam"),
        ("no such class", "Tiny4D"),
        ("no checkpoint", "gone.ckpt was given, and there is no such file"),
        ("short clips", "s3d"),
        ("no module", "which names no module; close: "),
    ],
)
def test_a_mistake_is_answered_in_one_message(
    refused: dict[str, tuple[int, str]], mistake: str, said: str
):
    code, err = refused[mistake]
    assert code == 2
    assert "Traceback" not in err, err
    line = err.splitlines()[-1]
    assert line.startswith("regkit: "), err
    assert said.lower() in line.lower(), err


def test_a_refused_run_leaves_no_folder(refused: dict[str, tuple[int, str]], folder: Path):
    assert len(refused) > 9
    assert not (folder / "runs").exists()
    assert not (folder.parent / "config").exists()  # two above a file ckpt_path= that is not there


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(folder: Path):
    """Real DDP: gloo on the CPU, each process with its own half of the batches."""
    summary = succeed_anew(
        folder, "ddp", "trainer=ddp", "trainer.accelerator=cpu", "penalty=[l1,temporal]",
        "lam=1e-2", "trainer.max_epochs=2", "data.batch_size=6",
    )  # fmt: skip
    assert summary["steps"] == 4
    assert 0 < summary["density"] < 1
