"""What each penalty adds to an optimizer step: python tests/benchmarks/step_time.py [--out FILE].

A variant and the two baselines take turns in one process, each with its own weights and the same
gradients; a figure is the median over rounds, a ratio the median of the ratios within a round.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.optim import AdamW, Optimizer
from torchvision.models import video

from regkit import Regularizer
from regkit.penalties import WeightPenalty
from regkit.penalties.penalty import GroupPenalty

CONFIGS = Path(__file__).parents[2] / "configs" / "penalty"


def penalties(lam: float) -> dict[str, WeightPenalty]:
    """Make every weight penalty of the configuration folder; the first of groups in all ways."""
    found: dict[str, WeightPenalty] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = OmegaConf.merge({"lam": lam}, OmegaConf.load(path))
        penalty = instantiate(OmegaConf.select(config, path.stem), _convert_="all")
        if isinstance(penalty, WeightPenalty):
            found[path.stem] = penalty
    name, first = next((n, p) for n, p in found.items() if isinstance(p, GroupPenalty))
    for kind in ("input", "kernel", "channel"):
        found[f"{name} {kind}"] = replace(first, groups=kind)  # type: ignore[call-arg]
    return found


def optimizer(
    args: argparse.Namespace, penalty: WeightPenalty | None, **options: bool
) -> Optimizer:
    """Make AdamW on fresh weights, with or without a penalty."""
    torch.manual_seed(0)
    net = getattr(video, args.model)()
    made = AdamW(net.parameters(), lr=1e-3, weight_decay=0.0, **options)
    if penalty is not None:
        Regularizer(net, penalty, example=torch.zeros(1, 3, 8, 64, 64)).attach(made)
    return made


def draw_gradients(made: Optimizer, seed: int) -> None:
    """Draw gradients of unlike scale, as layers have them."""
    generator = torch.Generator().manual_seed(seed)
    for place, p in enumerate(p for group in made.param_groups for p in group["params"]):
        p.grad = torch.randn(p.shape, generator=generator).mul_(1e-3 * 2.0 ** (place % 5))


def timed_ms(made: Optimizer) -> float:
    """Return the time of one step."""
    began = time.perf_counter()
    made.step()
    return (time.perf_counter() - began) * 1e3


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time every variant in turns with the two baselines."""
    results = {}
    baselines = [optimizer(args, None, fused=True), optimizer(args, None, foreach=True)]
    for name, penalty in penalties(args.lam).items():
        if name in args.skip:
            continue
        contestants = [*baselines, optimizer(args, penalty, fused=True)]
        rounds = []
        for seed in range(args.warmup + args.rounds):
            for contestant in contestants if seed < 3 else ():
                draw_gradients(contestant, seed)
            rounds.append([timed_ms(contestant) for contestant in contestants])
        fused, foreach, ours = zip(*rounds[args.warmup :], strict=True)
        results[name] = {
            "fused_ms": statistics.median(fused),
            "foreach_ms": statistics.median(foreach),
            "ours_ms": statistics.median(ours),
            "to_fused": statistics.median(o / f for o, f in zip(ours, fused, strict=True)),
            "to_foreach": statistics.median(o / f for o, f in zip(ours, foreach, strict=True)),
        }
        row = "  ".join(f"{key} {value:7.2f}" for key, value in results[name].items())
        print(f"{name:28} {row}", flush=True)
    return results


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
    results = measure(args)
    if args.out is not None:
        machine = {
            "model": args.model,
            "lam": args.lam,
            "rounds": args.rounds,
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": str(date.today()),
        }
        args.out.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
