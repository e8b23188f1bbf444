"""Runs that are killed, once or several times, and go on: the very run that never was."""

import json
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from programs import Program

from regkit.training.config import register
from regkit.training.runs import curves, read_run

KILLED_RUN = Path(__file__).with_name("killed_run.py")
CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = [
    *("data.num_train=20", "data.num_val=8", "data.num_test=8", "data.batch_size=4"),
    *("data.num_frames=4", "data.size_px=16", "trainer.accelerator=cpu", "trainer.max_epochs=3"),
    *("model.channels=[4,8,8]", "model.dropout=0.3", "trainer.log_every_n_steps=2"),
]
KINDS = {
    "stages": [
        *("data.num_workers=0", "penalty=group_lasso", "penalty.group_lasso.groups=channel"),
        *("lam=0.03", "debias_epochs=2", "shrink=true", "save_every_n_steps=2"),
        *("strength.target_density=0.6", "strength.settle=0.8"),
    ],
    "within": [
        *("data.num_workers=1", "penalty=[l1,temporal]", "lam=0.02", "save_every_n_steps=1"),
        *(
            "trainer.max_epochs=2",
            "+trainer.val_check_interval=0.5",
            "optimizer=sgd",
            "test_checkpoint=best",
        ),
        "trainer.accumulate_grad_batches=2",
    ],
    "stopped": [
        *("data.num_workers=0", "penalty=mcp", "lam=0.02", "callbacks=early_stopping"),
        *("callbacks.early_stopping.patience=1", "trainer.max_epochs=6", "test_checkpoint=best"),
        *("optimizer.lr=0.0001", "debias_epochs=1"),
    ],
}
# Fields of the summary that a clock decides.
BY_THE_CLOCK = {"train_s", "data_share", "debias_s", "whole_latency_ms", "shrunk_latency_ms"}
# The last of each kind that is tried; not every run gets there.
MOMENTS = {"seconds": 4.0, "step": 14, "stepped": 14, "move": 16, "moved": 16, "copy": 2}
MOMENTS |= {"checkpoint": 10, "picture": 3, "drawn": 3}


def write_config(path: Path, words: Sequence[str]) -> None:
    """Compose a configuration once, for all runs of it."""
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=list(words))
    with open_dict(config):
        config.name = path.stem
    OmegaConf.save(config, path, resolve=True)


def begin(folder: Path, kind: str, where: str, moment: str = "") -> Program:
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "KILL_AT": moment}
    return Program(KILLED_RUN, f"{kind}.yaml", where, folder=folder, **own)


def left_by(folder: Path) -> dict[str, Any]:
    """Return what a run leaves that no clock decides."""
    summary = json.loads((folder / "summary.json").read_text())
    left: dict[str, Any] = {k: v for k, v in summary.items() if k not in BY_THE_CLOCK}
    for path in sorted((folder / "checkpoints").iterdir()):
        checkpoint = torch.load(path, weights_only=True)
        for part in ("state_dict", "optimizer_states", "place"):
            left[f"{path.name} {part}"] = checkpoint.get(part)
    left["predictions"] = (folder / "predictions.csv").read_text()
    left["groups"] = dict(np.load(folder / "groups.npz"))
    for name, (steps, values) in curves(read_run(folder)).items():
        if not name.startswith("speed/") and name != "epoch":  # which comes with speeds too
            left[f"curve {name}"] = (steps, values)
    return left


def differences(one: Any, two: Any, name: str = "") -> list[str]:
    """Name what is not the same to the bit."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [*one, *(key for key in two if key not in one)]
        found = [differences(one.get(key), two.get(key), f"{name}/{key}") for key in keys]
        return [line for lines in found for line in lines]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{name}/{n}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if torch.equal(one, two) else [f"{name} differs"]
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return [] if np.array_equal(one, two, equal_nan=True) else [f"{name} differs"]
    return [] if type(one) is type(two) and one == two else [f"{name}: {one} became {two}"]


def drawn_moments(seed: int, most: int = 3) -> list[str]:
    """Draw when a run is killed: once, or, each time that it goes on, again."""
    rng = random.Random(f"chaos {seed}")
    moments = []
    for _ in range(rng.choice([1, 1, 2, most])):
        kind = rng.choice(list(MOMENTS))
        last = MOMENTS[kind]
        at = f"{rng.uniform(0, last):.2f}" if isinstance(last, float) else rng.randint(1, last)
        moments.append(f"{kind}:{at}")
    return moments


def killed(folder: Path, kind: str, where: str, moments: Sequence[str]) -> list[str]:
    """Run with these kills, and once more to the end; return the moments that came to pass."""
    came = []
    for moment in [*moments, ""]:
        code, out, err = begin(folder, kind, where, moment).communicate(timeout=100)
        if code == -signal.SIGKILL:
            came.append(moment)
            continue
        assert code == 0, f"{moments}, {moment}: {out}\n{err}"
    return came


class Chaos:
    """Runs that nobody kills, one of each kind, and what they left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: dict[str, dict[str, Any]] = {}

    def lost(self, kind: str, moments: Sequence[str], where: str) -> tuple[list[str], list[str]]:
        """Kill a run at these moments; return those that came to pass, and what differs then."""
        if kind not in self._whole:
            write_config(self.folder / f"{kind}.yaml", [*QUICK, *KINDS[kind]])
            assert not killed(self.folder, kind, kind, [])
            self._whole[kind] = left_by(self.folder / kind)
        came = killed(self.folder, kind, where, moments)
        lost = differences(self._whole[kind], left_by(self.folder / where))
        if not lost:
            shutil.rmtree(self.folder / where)
        return came, lost


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    return Chaos(tmp_path_factory.mktemp("chaos"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_killed_run_is_the_run_that_was_not(chaos: Chaos, seed: int):
    kind = list(KINDS)[seed % len(KINDS)]
    _, lost = chaos.lost(kind, drawn_moments(seed), f"killed {seed}")
    assert not lost


def main() -> None:
    """Kill runs for as long as is asked: python tests/training/test_chaos.py SECONDS [SEED]."""
    import sys
    import tempfile

    deadline = time.time() + float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    chaos, kills, runs, bad = Chaos(Path(tempfile.mkdtemp())), 0, 0, 0
    while time.time() < deadline:
        kind, moments = list(KINDS)[seed % len(KINDS)], drawn_moments(seed)
        try:
            came, lost = chaos.lost(kind, moments, f"killed {seed}")
        except AssertionError as error:
            came, lost = moments, [str(error)[-1500:]]
        kills, runs, bad = kills + len(came), runs + 1, bad + bool(lost)
        print(seed, kind, came, "equal" if not lost else lost[:5], flush=True)
        seed += 1
    print(f"{runs} runs, {kills} kills, {bad} not equal, in {chaos.folder}")


if __name__ == "__main__":
    main()
