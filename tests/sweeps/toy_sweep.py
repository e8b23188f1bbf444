"""A train.py whose jobs take no time: numbers in place of training. Started by tests."""

import json
import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from joblib.externals.loky import get_reusable_executor
from omegaconf import DictConfig

import regkit.sweeps.optuna
from regkit.sweeps.launch import register_launches
from regkit.training.config import register

ROOT = Path(__file__).parents[2]
CONFIG = f"""
defaults:
  - penalty: good
  - _self_
  - override /hydra/sweeper: optuna
lam: 1e-3
ends: well              # how jobs with the bad penalty end: well, raise, kill
sleep_s: 0.0
name: ${{run_name:${{penalty}},${{lam}},${{hydra:overrides.task}}}}
hydra:
  searchpath: ["file://{ROOT}/configs"]
  sweep: {{dir: out, subdir: "${{name}}"}}
  output_subdir: config
"""


def write_configs(folder: Path) -> None:
    """Lay the configuration of the jobs into a folder."""
    (folder / "penalty").mkdir(parents=True)
    for name in ("good", "bad"):
        plug = f"{name}: {{_target_: x.Y, lam: '${{lam}}'}}"
        (folder / "penalty" / f"{name}.yaml").write_text(plug)
    (folder / "toy.yaml").write_text(CONFIG)


def reached(lam: float, bad: bool) -> tuple[float, float]:
    """Return accuracy and density: best at lam=10^-3.5, and sparser with more lam."""
    accuracy = 1 - 0.1 * abs(math.log10(lam) + 3.5) - 0.05 * bad
    return accuracy, -0.1 * math.log10(lam) * (0.7 if bad else 1.0)


def job(config: DictConfig) -> None:
    """Run one job; in starts.txt stands which was begun when."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with (folder.parent / "starts.txt").open("a") as starts:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        starts.write(f"{HydraConfig.get().job.num}|{folder.name}|{gpu}\n")
    time.sleep(config.sleep_s)
    bad = "bad" in config.penalty
    if bad and config.ends == "raise":
        (folder / "failed.txt").write_text("ValueError: bad\n\ntrace")
        raise ValueError("bad")
    if bad and config.ends == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    accuracy, density = reached(config.lam, bad)
    summary = {"name": config.name, "val_accuracy": accuracy, "density": density}
    (folder / "summary.json").write_text(json.dumps(summary))


def sweep(configs: Path, printed: Path, words: list[str]) -> None:
    """Sweep in this process, which is there for that only."""
    out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    warnings.resetwarnings()
    register()
    register_launches()
    name = "hydra_plugins.regkit.OptunaSweeper"
    Plugins.instance().class_name_to_class[name] = regkit.sweeps.optuna.OptunaSweeper
    regkit.sweeps.optuna.write_report = lambda folders: folders[0]  # it takes seconds
    sys.argv[1:] = words
    try:
        hydra.main(version_base="1.3", config_path=str(configs), config_name="toy")(job)()
    finally:
        # A program's end stops joblib's idle processes. A fork's end waits for them: five minutes.
        get_reusable_executor().shutdown()


def start(process: BaseProcess) -> None:
    """Start a forked process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        process.start()


def begin(folder: Path, *words: str) -> BaseProcess:
    """Begin a sweep in a process of its own; forked, since imports take longer than the jobs."""
    if not (folder / "conf").is_dir():
        write_configs(folder / "conf")
    words = ("-m", f"hydra.sweep.dir={folder / 'sweep'}", *words)
    arguments = (folder / "conf", folder / "printed.txt", list(words))
    process = multiprocessing.get_context("fork").Process(target=sweep, args=arguments)
    start(process)
    return process


def run(folder: Path, *words: str) -> tuple[int, str]:
    """Run a sweep to its end; return its exit code and what it printed.

    joblib's processes import torch anew, and again when one was lost: a minute or more when other
    work takes the cores.
    """
    process = begin(folder, *words)
    process.join(600)
    printed = (folder / "printed.txt").read_text()
    assert process.exitcode is not None, f"the sweep hangs; it printed: {printed}"
    return process.exitcode, printed


def starts(folder: Path) -> list[list[str]]:
    """Return number, name and GPU of each job of a sweep, in the order in which they began."""
    path = folder / "sweep" / "starts.txt"
    return [line.split("|") for line in path.read_text().splitlines()] if path.exists() else []
