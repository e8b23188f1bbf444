"""Three ways to a small net on one data set: dense, shrunk, and magnitude-pruned and finetuned.

python tests/benchmarks/payoff.py --out FOLDER [--folds 5] [--only 1 2] [--seeds 2] [--tune 10]
    [--shrink WORD ...] -- data=folder data.root=... model=cnn_gru trainer.max_epochs=60 ...

The words are those of train.py. For each fold (of those in --only) and seed:
- dense: penalty=none;
- shrunk: experiment=shrink for as many epochs, and cut;
- pruned: the dense net, of whose channels torch-pruning's MagnitudePruner removes as many as it
  takes to come down to the FLOPs of the shrunk one (L2 norm over coupled channels of
  convolutions, all layers alike), then finetuned for `tune` epochs; its time is that of both.
Writes FOLDER/payoff.json and a table. What is done is not done again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp

from regkit.pruning.counts import num_flops, num_parameters
from regkit.pruning.latency import latency
from regkit.structure.replica import replica
from regkit.timing import cpu_name
from regkit.training.checkpoints import load, save_checkpoint

TRAIN = Path(__file__).parents[2] / "train.py"
ROUTES = ("dense", "shrunk", "pruned")


def trained(folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """Run train.py and return its summary."""
    path = folder / "summary.json"
    if not path.is_file():
        command = [sys.executable, str(TRAIN), f"hydra.run.dir={folder}", *words]
        quiet = ["trainer.enable_progress_bar=false"]
        done = subprocess.run([*command, *quiet], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return json.loads(path.read_text())


def prune(run: Path, flops: int, out: Path) -> None:
    """Prune the dense net of a run by magnitude, down to so many FLOPs."""
    held = load(run, ("last",))
    example = held.data.example()
    head = [m for m in held.model.net.modules() if isinstance(m, torch.nn.Linear)][-1]
    low, high = 0.0, 0.97
    for _ in range(12):
        ratio = (low + high) / 2
        net = _pruned(held.model.net, example, head, ratio)
        low, high = (ratio, high) if num_flops(net, example) > flops else (low, ratio)
    net = _pruned(held.model.net, example, head, high)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(net, held.recipe, held.model.classes, out)


def _pruned(
    net: torch.nn.Module, example: torch.Tensor, head: torch.nn.Module, ratio: float
) -> torch.nn.Module:
    names = {module: name for name, module in net.named_modules()}
    copy = replica(net)
    keep = [copy.get_submodule(names[head])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch-pruning, of parameters it knows no layer for
        pruner = tp.pruner.MagnitudePruner(
            copy,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[*keep, *(m for m in copy.modules() if isinstance(m, torch.nn.RNNBase))],
            root_module_types=[torch.nn.Conv2d, torch.nn.Conv3d],  # it fails on GRUs
        )
        pruner.step()
    for parameter in copy.parameters():
        parameter.grad = None
    return copy.eval()


def one(folder: Path, words: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Go all three routes once."""
    dense = trained(folder / "dense", ["penalty=none", *words])
    shrunk = trained(folder / "shrunk", ["experiment=shrink", *args.shrink, *words])
    start = folder / "pruned.ckpt"
    if not start.is_file():
        prune(folder / "dense", shrunk["shrunk_flops"], start)
    rate = float(load(folder / "dense").recipe["optimizer"]["lr"])
    tuned = [f"warm_start={start}", f"trainer.max_epochs={args.tune}"]
    tuned += [f"optimizer.lr={0.3 * rate:g}"]
    pruned = trained(folder / "pruned", ["penalty=none", *words, *tuned])
    found = {
        "dense": _row(folder / "dense", dense["test_accuracy"], dense),
        "shrunk": _row(folder / "shrunk", shrunk["shrunk_accuracy"], shrunk),
        "pruned": _row(folder / "pruned", pruned["test_accuracy"], pruned),
    }
    found["pruned"]["train_s"] += dense["train_s"]
    return found


def latencies(folder: Path) -> dict[str, dict[str, float]]:
    """Measure the nets of one run side by side; return medians in ms by the number of clips."""
    nets = {route: load(folder / route).model.net for route in ROUTES}
    clip = load(folder / "dense").data.example()
    found = {}
    for clips in (1, 8):
        times = latency(nets, clip.expand(clips, *clip.shape[1:]).contiguous(), 12.0)
        found[f"batch of {clips}"] = {route: 1e3 * time.median for route, time in times.items()}
    return found


def _row(run: Path, accuracy: float, summary: dict[str, Any]) -> dict[str, Any]:
    held = load(run)
    return {
        "accuracy": accuracy,
        "parameters": num_parameters(held.model.net),
        "flops": num_flops(held.model.net, held.data.example()),
        "train_s": summary["train_s"],
    }


def main() -> None:
    """Go all routes for each fold and seed, and sum up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--tune", type=int, default=10)
    parser.add_argument("--shrink", nargs="*", default=[])
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    runs = []
    for fold in args.only or range(1, args.folds + 1):
        for seed in range(args.seeds):
            words = [*args.words, f"data.num_folds={args.folds}", f"data.fold={fold}"]
            found = one(args.out / f"fold{fold} seed{seed}", [*words, f"seed={seed}"], args)
            runs.append({"fold": fold, "seed": seed, **found})
            print(fold, seed, *(f"{r} {found[r]['accuracy']:.3f}" for r in ROUTES), flush=True)
    for route in ROUTES:
        means = {key: statistics.mean(run[route][key] for run in runs) for key in runs[0][route]}
        print(route, *(f"{key} {value:.4g}" for key, value in means.items()))
    differences = [run["shrunk"]["accuracy"] - run["dense"]["accuracy"] for run in runs]
    if len(runs) > 1:
        error = statistics.stdev(differences) / len(runs) ** 0.5
        print(f"shrunk - dense: {statistics.mean(differences):+.3f} +- {error:.3f} (SE)")
    about = {"machine": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"date": date.today().isoformat(), "words": args.words, "shrink": args.shrink}
    about["latency_ms"] = latencies(args.out / f"fold{runs[0]['fold']} seed{runs[0]['seed']}")
    print(about["latency_ms"])
    (args.out / "payoff.json").write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
