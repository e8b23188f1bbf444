"""What each penalty adds to an optimizer step: python tests/benchmarks/step_time.py [--out FILE].

All variants take turns in one process, each with its own weights and the same gradients; a figure
is the median over rounds of the ratio to torch.optim.AdamW(foreach=True) in the same round.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.optim import AdamW, Optimizer
from torchvision.models import video

from regkit import Regularizer
from regkit.penalties import WeightPenalty

CONFIGS = Path(__file__).parents[2] / "configs" / "penalty"


def penalties(lam: float) -> dict[str, WeightPenalty]:
    """Make every weight penalty of the configuration folder."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = OmegaConf.merge({"lam": lam}, OmegaConf.load(path))
        penalty = instantiate(OmegaConf.select(config, path.stem), _convert_="all")
        if isinstance(penalty, WeightPenalty):
            found[path.stem] = penalty
    return found


def variants(args: argparse.Namespace) -> dict[str, Callable[[], Optimizer]]:
    """Return what makes each optimizer, on fresh weights."""

    def make(penalty: WeightPenalty | None, **options: bool) -> Optimizer:
        torch.manual_seed(0)
        net = getattr(video, args.model)()
        optimizer = AdamW(net.parameters(), lr=1e-3, weight_decay=0.0, **options)
        if penalty is not None:
            example = torch.zeros(1, 3, 8, 64, 64)
            Regularizer(net, penalty, example=example).attach(optimizer)
        return optimizer

    made: dict[str, Callable[[], Optimizer]] = {
        "AdamW(fused=True)": lambda: make(None, fused=True),
        "AdamW(foreach=True)": lambda: make(None, foreach=True),
    }
    for name, penalty in penalties(args.lam).items():
        if name not in args.skip:
            made[f"fused + {name}"] = lambda penalty=penalty: make(penalty, fused=True)
    return made


def gradients(parameters: list[nn.Parameter], seed: int) -> None:
    """Draw gradients of unlike scale, as layers have them."""
    generator = torch.Generator().manual_seed(seed)
    for place, p in enumerate(parameters):
        p.grad = torch.randn(p.shape, generator=generator).mul_(1e-3 * 2.0 ** (place % 5))


def step_s(optimizer: Optimizer) -> float:
    """Return the time of one step."""
    began = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - began


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Time every variant against the two baselines, in pairs that take turns."""
    made = variants(args)
    names = list(made)
    fused, foreach = made[names[0]](), made[names[1]]()
    times: dict[str, list[float]] = {}
    for name in names[2:]:
        other = made[name]()
        rows = []
        for round_ in range(args.warmup + args.rounds):
            for optimizer in (fused, foreach, other):
                if round_ < 3:
                    parameters = [p for g in optimizer.param_groups for p in g["params"]]
                    gradients(parameters, round_)
            rows.append([step_s(optimizer) for optimizer in (fused, foreach, other)])
        rows = rows[args.warmup :]
        times[name] = [statistics.median(column) * 1e3 for column in zip(*rows, strict=True)]
        times[name].append(statistics.median(r[2] / r[1] for r in rows))
        print(
            f"{name:32} {times[name][2]:7.1f} ms  fused {times[name][0]:6.1f}  foreach {times[name][1]:6.1f}  ratio to foreach {times[name][3]:5.2f}",
            flush=True,
        )
    return times


def main() -> None:
    """Measure, print, and keep the figures with the machine they belong to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="r3d_18")
    parser.add_argument("--lam", type=float, default=1e-6)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=["nuclear"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    times = measure(args)
    if args.out is not None:
        machine = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": str(date.today()),
            "columns_ms": ["fused", "foreach", "variant", "median ratio to foreach"],
        }
        args.out.write_text(json.dumps({**machine, **vars(args), "out": None, "times": times}, indent=1))


if __name__ == "__main__":
    main()
