"""Budgets that were asked for and reached, and what each way of sharing them out costs in accuracy.

python tests/benchmarks/budgets.py --out FILE [--seeds 3] [--epochs 10] [--flops 0.2]
    [--only ARM ...] -- data=folder data.root=... [WORD ...]

The words are those of train.py, for the videos and the model. Clips are read once, without
augmentation, and each arm trains on them by a plain loop (AdamW 3e-3, cosine, batches of 16), then
is cut by `shrink`: channels by group_l0, or by the group lasso where its name says so, until 80 %
of training. `density` is layerwise, at the share of channels that costs what `even` costs. Arms
that FILE holds are not trained again.
"""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional

from regkit import Regularizer, Schedule, shrink
from regkit.penalties import GroupL0, GroupLasso
from regkit.pruning.width_cost import flops_cost
from regkit.structure.coupling import couple
from regkit.timing import cpu_name
from regkit.training.config import register

CONFIGS = Path(__file__).parents[2] / "configs"
COURSE = {"debias": 0.8}
Clips = tuple[Tensor, Tensor]


def arms(flops: float) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the penalty and the schedule of each arm, by name."""
    level, lasso = GroupL0(1e-4, groups="channel"), GroupLasso(1e-3, groups="channel")
    asked = {"target_flops": flops}
    return {
        "dense": (None, {}),
        "even": (level, {**asked, "layerwise": True}),
        "by_cost": (level, asked),
        "strength": (level, {**asked, "by_cost": False}),
        "density": (level, {"target_density": flops, "layerwise": True}),
        "lasso even": (lasso, {**asked, "layerwise": True}),
        "lasso by_cost": (lasso, asked),
        "lasso strength": (lasso, {**asked, "by_cost": False}),
        "multiples of 8": (level, {**asked, "layerwise": True, "multiple_of": 8}),
        "parameters": (level, {"target_parameters": flops, "layerwise": True}),
        "parameters by_cost": (level, {"target_parameters": flops}),
        "latency": (level, {"target_latency": 0.8, "layerwise": True}),
        "latency by_cost": (level, {"target_latency": 0.8}),
    }


def read(data: Any, loader: Iterable[Any]) -> Clips:
    """Return all clips of a split, and their labels."""
    batches = [data.finish(batch, training=False) for batch in loader]
    return torch.cat([b["clip"] for b in batches]), torch.cat([b["label"] for b in batches])


def train(
    net: nn.Module, clips: Clips, penalty: Any, options: dict[str, Any], epochs: int
) -> Regularizer | None:
    """Train a net, and return what acted on it."""
    x, y = clips
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    steps = epochs * (len(x) // 16)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    reg = None
    if penalty is not None:
        schedule = Schedule(**options, **COURSE, num_steps=steps)
        reg = Regularizer(net, penalty, example=x[:1], schedule=schedule).attach(optimizer)
    net.train()
    for _ in range(epochs):
        for places in torch.randperm(len(x)).split(16)[: len(x) // 16]:
            optimizer.zero_grad()
            functional.cross_entropy(net(x[places]), y[places]).backward()
            optimizer.step()
            rate.step()
    net.eval()
    return reg


@torch.no_grad()
def accuracy(net: nn.Module, clips: Clips) -> float:
    """Return the share of clips whose class is right."""
    x, y = clips
    found = torch.cat([net(part).argmax(1) for part in x.split(32)])
    return float((found == y).float().mean())


def one(
    config: DictConfig, num_classes: int, splits: dict[str, Clips], arm: Any, seed: int, epochs: int
) -> dict[str, Any]:
    """Train, cut and test one arm."""
    penalty, options = arm
    torch.manual_seed(seed)
    net = instantiate(config.model, num_classes=num_classes)
    x = splits["train"][0][:1]
    if "target_density" in options:
        coupling = couple(net, x)
        cost, names = flops_cost(net, x, coupling), [c.name for c in coupling.channels]
        widths = cost.even_widths(options["target_density"], names)
        whole = sum(c.num_groups for c in coupling.channels)
        options = {**options, "target_density": sum(widths.values()) / whole}
    began = time.perf_counter()
    reg = train(net, splits["train"], penalty, options, epochs)
    row: dict[str, Any] = {"train_s": round(time.perf_counter() - began, 1)}
    row["accuracy"] = round(accuracy(net, splits["test"]), 4)
    if reg is None:
        return row
    (result,) = reg.target_results()
    small, report = shrink(net, x, multiple_of=options.get("multiple_of", 1))
    assert report.before.latency_s is not None
    assert report.after.latency_s is not None
    return row | {
        "asked": result.target,
        "reached": round(result.reached, 4),
        "met": result.is_met,
        "cut_accuracy": round(accuracy(small, splits["test"]), 4),
        "flops": round(report.after.flops / report.before.flops, 4),
        "parameters": round(report.after.parameters / report.before.parameters, 4),
        "latency": round(report.after.latency_s.median / report.before.latency_s.median, 3),
        "whole_latency_ms": round(1e3 * report.before.latency_s.median, 2),
        "channels": {name: left for name, (left, _) in report.channels.items()},
    }


def main() -> None:
    """Train what is missing, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--flops", type=float, default=0.2)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    register()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train", args.words)
    data = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    splits = {"train": read(data, data.train_dataloader())}
    data.setup("test")
    splits["test"] = read(data, data.test_dataloader())
    found = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    found |= {"cpu": cpu_name(), "torch": torch.__version__, "python": platform.python_version()}
    found |= {"epochs": args.epochs, "clips": {k: len(x) for k, (x, _) in splits.items()}}
    chosen = {n: a for n, a in arms(args.flops).items() if args.only is None or n in args.only}
    for seed in range(args.seeds):
        for name, arm in chosen.items():
            rows = found["rows"].setdefault(name, {})
            if str(seed) not in rows:
                rows[str(seed)] = one(config, data.num_classes, splits, arm, seed, args.epochs)
                print(name, seed, rows[str(seed)], flush=True)
                args.out.write_text(json.dumps(found, indent=1))
    for name, rows in found["rows"].items():
        keys = ("accuracy", "cut_accuracy", "asked", "reached", "flops", "parameters", "latency")
        means = {k: [r[k] for r in rows.values() if k in r] for k in keys}
        print(f"{name:<16}", *(f"{k} {fmean(v):.3f}" for k, v in means.items() if v))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
