"""What of a support is reproducible: the overlap of the final supports of trainings that differ.

python tests/benchmarks/support_overlap.py [--orders FOLDER] [--runs FOLDER] [--seeds 0 1]
    [--picture FILE] [--out FILE]

All train the main job's net with L1, with the rule that holds zeros and without it. Pairs differ in

    sums    the number of threads, hence the order of sums
    branch  the order of clips in the last quarter: all else is copied from one training
    order   the order of clips from the first step on; first weights and clips are the same
    seed    first weights, clips and their order

Branches, orders and seeds are trained here; what the folder of `--orders` has already is taken as
it is. Finished runs of `support.py`, in the folder of `--runs`, are compared too: of the same seed
for sums, of the same number of threads for seeds.

Filters of two nets are also matched before they are compared, as those of another seed come in
another order: layer by layer, input channels as the previous layer has been matched, then the
assignment of output channels that has the largest sum of cosines between the |w| of filters
(Hungarian method). Matching finds overlap in independent supports too, so both are given beside
what they are for independent draws of the same density in each layer: as it is by expectation,
and matched, of the second net with the entries of each layer shuffled.
"""

import argparse
import copy
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import scipy
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.optimize import linear_sum_assignment
from support import COLORS, RULES
from torch import Tensor, nn

from regkit.optim.schedule import Schedule
from regkit.regularizer.regularizer import Regularizer
from regkit.timing import cpu_name
from regkit.training.config import make, make_penalties, register
from regkit.training.overrides import CONFIGS

LAM = 1e-4
# Share of training after which branches part.
PARTING = 0.75
# Shuffles that the level of independent, matched supports is a mean of.
NUM_SHUFFLES = 5
KINDS = {
    "sums": "order of sums",
    "branch": "order of clips,\nlast quarter",
    "order": "order of clips,\nfrom the start",
    "seed": "seed",
}

# Weights of convolutions and the linear layer, (out, in, ...), in the order of the net.
Layers = Sequence[Tensor]


class Task(NamedTuple):
    """What a training needs, of one seed; clips and labels are those of the training split."""

    config: Mapping[str, Any]
    clips: Tensor
    labels: Tensor
    num_classes: int


def task_of(seed: int) -> Task:
    """Load all clips of the main job; from 16 frames 16 are taken, the same each time."""
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["penalty=l1", f"lam={LAM}", f"seed={seed}"])
    config.name = ""
    options: Any = OmegaConf.to_container(config, resolve=True)
    data = make(options["data"], num_workers=0)
    data.prepare_data()
    data.setup()
    batches = [data.finish(batch, training=True) for batch in data.train_dataloader()]
    clips, labels = (torch.cat([batch[key] for batch in batches]) for key in ("clip", "label"))
    return Task(options, clips, labels, data.num_classes)


def begun(task: Task, holds: bool) -> list[Any]:
    """Return the net, its optimizer, scheduler and regularizer, all new."""
    torch.manual_seed(task.config["seed"])
    model = make(task.config["model"], num_classes=task.num_classes)
    optimizer = make(task.config["optimizer"])(model.parameters())
    scheduler = make(task.config["scheduler"])(optimizer)
    schedule = Schedule(holds_zeros=holds)
    penalties = make_penalties(task.config["penalty"])
    reg = Regularizer(model, penalties, schedule=schedule).attach(optimizer)
    return [model, optimizer, scheduler, reg]


def trained(
    task: Task, holds: bool, order: int, path: Path, states: Sequence[Any] = ()
) -> dict[str, Any]:
    """Train to the end, from the start or from the states of `PARTING`.

    Returns: "net", the final state, and "states", those of `PARTING`; written to `path`.
    """
    if path.exists():
        return torch.load(path, weights_only=True)
    whole = begun(task, holds)
    model, optimizer, scheduler, _ = whole
    for one, state in zip(whole if states else (), states, strict=True):
        one.load_state_dict(copy.deepcopy(state))
    num_epochs, size = task.config["trainer"]["max_epochs"], task.config["data"]["batch_size"]
    parting = round(PARTING * num_epochs)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(parting if states else 0, num_epochs):
        if epoch == parting:
            states = copy.deepcopy([one.state_dict() for one in whole])
        draw = torch.Generator().manual_seed(1000 * order + epoch)
        for chosen in torch.randperm(len(task.labels), generator=draw).split(size):
            optimizer.zero_grad()
            criterion(model(task.clips[chosen]), task.labels[chosen]).backward()
            optimizer.step()
        scheduler.step()
    found = {"net": model.state_dict(), "states": list(states)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def layers_of(state: Mapping[str, Tensor]) -> Layers:
    """Return the penalised weights: those with more than one axis."""
    return [value for value in state.values() if value.ndim > 1]


def matched(one: Layers, other: Layers) -> Layers:
    """Return the layers of the second net with filters in the order of the first."""
    order = torch.arange(other[0].shape[1])
    found = []
    for place, (left, right) in enumerate(zip(one, other, strict=True)):
        right = right[:, order]
        if place + 1 < len(one):  # outputs of the last layer are classes
            rows, others = (nn.functional.normalize(w.abs().flatten(1)) for w in (left, right))
            _, chosen = linear_sum_assignment((rows @ others.T).numpy(), maximize=True)
            order = torch.from_numpy(chosen)
            right = right[order]
        found.append(right)
    return found


def alive(net: Layers) -> Tensor:
    """Return which weights are not zero, one row."""
    return torch.cat([w.flatten() != 0 for w in net])


def jaccard(one: Layers, other: Layers) -> float:
    """Return the share of the entries alive in one of two nets that are alive in both."""
    left, right = alive(one), alive(other)
    return int((left & right).sum()) / max(int((left | right).sum()), 1)


def by_chance(one: Layers, other: Layers) -> float:
    """Return the Jaccard of independent supports, each layer with its density in either net."""
    both = either = 0.0
    for left, right in zip(one, other, strict=True):
        a, b = (float((w != 0).double().mean()) for w in (left, right))
        both += left.numel() * a * b
        either += left.numel() * (a + b - a * b)
    return both / either


def shuffled(layers: Layers, seed: int) -> Layers:
    """Return layers whose entries have other places."""
    draw = torch.Generator().manual_seed(seed)
    return [w.flatten()[torch.randperm(w.numel(), generator=draw)].view_as(w) for w in layers]


def compared(one: Layers, other: Layers) -> dict[str, Any]:
    """Return densities, overlap and its level by chance, as they are and matched."""
    fits = matched(one, other)
    random = [shuffled(other, seed) for seed in range(NUM_SHUFFLES)]
    return {
        "densities": [float(alive(net).double().mean()) for net in (one, other)],
        "jaccard": jaccard(one, other),
        "by_chance": by_chance(one, other),
        "matched": jaccard(one, fits),
        "matched_by_chance": fmean(jaccard(one, matched(one, net)) for net in random),
        "layers": [jaccard([a], [b]) for a, b in zip(one, other, strict=True)],
        "matched_layers": [jaccard([a], [b]) for a, b in zip(one, fits, strict=True)],
    }


def finished(folder: Path) -> dict[tuple[int, int, bool], Layers]:
    """Return the layers of finished runs of `support.py`, by seed, threads and rule."""
    found = {}
    for summary in sorted(folder.glob("l1_[0-9]*_*_*/summary.json")):
        _, seed, threads, holds = summary.parent.name.split("_")
        path = summary.parent / "checkpoints" / "last.ckpt"
        state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        found[int(seed), int(threads), holds == "True"] = layers_of(state)
    return found


def pairs_of_runs(folder: Path) -> list[dict[str, Any]]:
    """Compare finished runs that differ in threads alone, or in seed alone."""
    rows = []
    for (one, left), (other, right) in combinations(finished(folder).items(), 2):
        same = [a == b for a, b in zip(one, other, strict=True)]
        if same[2] and sum(same) == 2:
            kind = "seed" if same[1] else "sums"
            names = [f"seed {seed}, {threads} threads" for seed, threads, _ in (one, other)]
            rows.append({"kind": kind, "holds": one[2], "of": names} | compared(left, right))
    return rows


def pairs_of_orders(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train with two orders of clips, from the start and from `PARTING` on, and compare."""
    rows = []
    firsts: dict[bool, dict[int, Layers]] = {holds: {} for holds in RULES}
    for seed in seeds:
        task = task_of(seed)
        for holds in RULES:
            name = f"{seed}_{holds}.pt"
            first = trained(task, holds, 0, folder / f"order0_{name}")
            branch = trained(task, holds, 1, folder / f"branch_{name}", first["states"])
            order = trained(task, holds, 1, folder / f"order1_{name}")
            layers = firsts[holds][seed] = layers_of(first["net"])
            for kind, other in (("branch", branch), ("order", order)):
                found = compared(layers, layers_of(other["net"]))
                rows.append({"kind": kind, "holds": holds, "of": [f"seed {seed}"]} | found)
    for holds, nets in firsts.items():
        for (one, left), (other, right) in combinations(nets.items(), 2):
            names = [f"seed {one}", f"seed {other}"]
            rows.append({"kind": "seed", "holds": holds, "of": names} | compared(left, right))
    return rows


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the overlap of each kind of pair as bars, single pairs as dots, chance as lines."""
    bars = [(kind, "jaccard", "by_chance", words) for kind, words in KINDS.items()]
    bars.append(("seed", "matched", "matched_by_chance", "seed,\nfilters matched"))
    bars = [bar for bar in bars if any(row["kind"] == bar[0] for row in rows)]
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for place, (kind, key, level, _) in enumerate(bars):
        for side, holds in zip((-0.2, 0.2), RULES, strict=True):
            some = [row for row in rows if (row["kind"], row["holds"]) == (kind, holds)]
            if not some:
                continue
            values, x = [row[key] for row in some], place + side
            axis.bar(x, fmean(values), 0.36, color=COLORS[holds], alpha=0.75)
            axis.plot([x] * len(values), values, "o", color="black", markersize=3, alpha=0.6)
            chance = fmean(row[level] for row in some)
            axis.plot([x - 0.18, x + 0.18], [chance] * 2, color="black", linewidth=2)
    for holds, words in RULES.items():
        axis.bar(0, 0, color=COLORS[holds], alpha=0.75, label=words)
    axis.plot([], [], color="black", linewidth=2, label="independent supports")
    axis.set_xticks(range(len(bars)), [words for *_, words in bars])
    axis.set(ylabel="overlap (Jaccard)", ylim=(0, 1))
    axis.set_title("final supports of two trainings that differ in")
    axis.legend(frameon=False, loc="upper right")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is missing, compare, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/support"))
    parser.add_argument("--orders", type=Path, default=Path("runs/support_orders"))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = pairs_of_runs(asked.runs) + pairs_of_orders(asked.orders, asked.seeds)
    keys = ("jaccard", "by_chance", "matched", "matched_by_chance")
    print(f"{'differ in':10}{'':20}pairs  density  " + "  ".join(keys))
    for kind in KINDS:
        for holds, words in RULES.items():
            some = [row for row in rows if (row["kind"], row["holds"]) == (kind, holds)]
            if some:
                density = fmean(value for row in some for value in row["densities"])
                means = [f"{fmean(row[key] for row in some):{len(key)}.3f}" for key in keys]
                print(f"{kind:10}{words:20}{len(some):5}  {density:7.3f}  " + "  ".join(means))
    if asked.picture is not None:
        draw(rows, asked.picture)
    if asked.out is not None:
        versions = {"torch": torch.__version__, "scipy": scipy.__version__}
        machine = {"cpu": cpu_name(), "system": platform.platform(), **versions}
        content = {"date": date.today().isoformat(), **machine, "lam": LAM, "pairs": rows}
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
