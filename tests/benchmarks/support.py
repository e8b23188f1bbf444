"""How settled the zeros of a training are, with and without the rule that holds them.

python tests/benchmarks/support.py [--runs FOLDER] [--only NAME ...] [--picture FILE] [--out FILE]
    [--name NAME -- data=folder data.root=... model=cnn_gru ...]

Words of train.py are a case of their own, of that name, in place of those below. Each case trains
with both, over seeds (first weights and order of the videos) and numbers of threads (another order
of sums), by train.py; runs that are in the folder already are taken as they are. The picture is of
the case `l1`, seed 0.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning
import matplotlib.pyplot as plt
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regkit.timing import cpu_name

CHANNEL = "penalty.{0}.groups=channel"
CASES: dict[str, list[str]] = {
    "l1": ["penalty=l1", "lam=1e-4"],
    "l1, sgd": ["penalty=l1", "lam=1e-4", "optimizer=sgd"],
    "group_lasso, filter": ["penalty=group_lasso", "lam=1e-3"],
    "group_lasso, channel": ["penalty=group_lasso", "lam=1e-3", CHANNEL.format("group_lasso")],
    "group_l0, filter": ["penalty=group_l0", "lam=1e-3"],
    "mcp": ["penalty=mcp", "lam=1e-4"],
    **{
        f"l1, lam {lam}": ["penalty=l1", f"lam={lam}"]
        for lam in ("1e-5", "3e-5", "3e-4", "1e-3", "3e-3")
    },
    "l1, sgd, twice as long": ["penalty=l1", "lam=1e-4", "optimizer=sgd", "trainer.max_epochs=80"],
}
MORE_THREADS = ("l1",)
KEYS = ("density", "objective", "test_accuracy", "flips", "jaccard", "should_wake")
RULES = {True: "zeros held", False: "zeros wake freely"}
COLORS = {True: "#0072b2", False: "#d55e00"}


def train(case: str, seed: int, threads: int, holds: bool, folder: Path) -> dict[str, Any]:
    """Return the summary of a run."""
    if not (folder / "summary.json").exists():
        options = [*CASES[case], f"seed={seed}", f"strength.holds_zeros={str(holds).lower()}"]
        quiet = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=5"]
        command = [sys.executable, "train.py", *options, *quiet, f"hydra.run.dir={folder}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "summary.json").read_text())
    return {key: found.get(key) for key in KEYS}


def curve(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Return steps and values."""
    events = EventAccumulator(str(folder)).Reload().Scalars(tag)
    return [event.step for event in events], [event.value for event in events]


def draw(folders: dict[bool, Path], path: Path) -> None:
    """Draw density and flips over the course of training."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for holds, folder in folders.items():
        kind = {"color": COLORS[holds], "label": RULES[holds], "linewidth": 1.2}
        axes[0].plot(*curve(folder, "density/total"), **kind)
        steps, flips = curve(folder, "support/flips")
        axes[1].plot(steps, [max(100 * share, 1e-4) for share in flips], **kind)
    axes[0].set(xlabel="step", ylabel="density", ylim=(0, 1.02), title="share that is not zero")
    axes[1].set(xlabel="step", ylabel="% of the weights", yscale="log", title="flips in a step")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def run(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing and print a line a run."""
    rows = []
    for case in asked.only:
        for seed in asked.seeds:
            for threads in asked.threads if case in MORE_THREADS else [1]:
                for holds in RULES:
                    name = f"{case.replace(', ', '_')}_{seed}_{threads}_{holds}"
                    found = train(case, seed, threads, holds, asked.runs / name)
                    rows.append({"case": case, "seed": seed, "threads": threads, "holds": holds})
                    rows[-1] |= found
                    shown = "  ".join(f"{key} {found[key]:.4g}" for key in KEYS)
                    print(f"{case}, seed {seed}, {threads} threads, {RULES[holds]}: {shown}")
    return rows


def main() -> None:
    """Run what is missing, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/support"))
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--name", help="of the case that the words make")
    parser.add_argument("words", nargs="*", help="of train.py")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.words:
        CASES[asked.name or " ".join(asked.words)] = asked.words
        asked.only = [asked.name or " ".join(asked.words)]
    rows = run(asked)
    for case in asked.only:
        for holds, words in RULES.items():
            some = [row for row in rows if (row["case"], row["holds"]) == (case, holds)]
            for key in KEYS:
                values = [row[key] for row in some]
                print(f"{case}, {words}: {key} {fmean(values):.4f} ({min(values)}-{max(values)})")
    if asked.picture is not None:
        folders = {holds: asked.runs / f"l1_0_{asked.threads[0]}_{holds}" for holds in RULES}
        draw(folders, asked.picture)
    if asked.out is not None:
        versions = {"torch": torch.__version__, "lightning": lightning.__version__}
        machine = {"cpu": cpu_name(), "system": platform.platform(), **versions}
        content = {"date": date.today().isoformat(), **machine, "runs": rows}
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
