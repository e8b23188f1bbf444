"""What shrinking buys, against a net that was built at the width that is left.

python tests/benchmarks/shrunk.py [--size 112] [--nets r3d_18 ...] [--shares 0.5 0.75]
    [--device cuda] [--out FILE]

Half and three quarters of all coupled channels are set to zero, of MViT's heads and hidden units
too; then the net is shrunk. Compared with it is a net of the same shape, all of whose layers were
made anew by their constructors.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.video import r2plus1d_18, r3d_18

from regkit.models.cnn_gru import CnnGru
from regkit.models.mvit_v2_s import MViTV2S
from regkit.models.s3d import S3D
from regkit.pruning.latency import latency
from regkit.pruning.shrink import shrink
from regkit.structure.channels import READER, WRITER, Coupling
from regkit.structure.coupling import couple
from regkit.structure.removal import zero_channels
from regkit.structure.replica import replica
from regkit.timing import cpu_name

NETS = {
    "r3d_18": lambda: r3d_18(num_classes=10),
    "r2plus1d_18": lambda: r2plus1d_18(num_classes=10),
    "s3d": lambda: S3D(num_classes=10),
    "mvit_v2_s": lambda: MViTV2S(num_classes=10),
    "cnn_gru": lambda: CnnGru(num_classes=10, hidden_size=256),
}
TRACED_PX = 64  # channels are the same at every size


def zeroed(model: nn.Module, coupling: Coupling, share: float) -> None:
    """Set a share of the channels of each set to zero, chosen at random, equally many."""
    draw = torch.Generator().manual_seed(0)
    dead = []
    for c in coupling.channels:
        order = torch.randperm(c.num_groups, generator=draw)
        dead.append((c, order < round(share * c.num_groups)))
    by_writers = [(c, mask) for c, mask in dead if c.by_writers]
    zero_channels(model, by_writers, WRITER)
    zero_channels(model, [(c, mask) for c, mask in dead if not c.by_writers], READER)


def built_anew(model: nn.Module) -> nn.Module:
    """Return a net of the same shape whose layers come from their constructors."""
    copy = replica(model)
    for name, module in list(copy.named_modules()):
        new = _new(module)
        if new is not None:
            copy.set_submodule(name, new)
    return copy.eval()


def _new(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        arguments = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        options: dict[str, Any] = {key: getattr(module, key) for key in arguments}
        bias = module.bias is not None
        cls = nn.Conv3d if isinstance(module, nn.Conv3d) else nn.Conv2d
        return cls(module.in_channels, module.out_channels, bias=bias, **options)
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        return type(module)(module.num_features, module.eps)
    if isinstance(module, nn.GRU):
        return nn.GRU(module.input_size, module.hidden_size, batch_first=module.batch_first)
    return None


def measured(name: str, share: float, clip: Tensor, budget_s: float) -> dict[str, Any]:
    """Zero, shrink and time one net."""
    torch.manual_seed(0)
    model = NETS[name]().to(clip.device)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.eval()
    traced = torch.randn(1, 3, 16, TRACED_PX, TRACED_PX).to(clip.device)
    coupling = couple(model, traced)
    zeroed(model, coupling, share)
    small, report = shrink(model, clip, coupling=coupling, timed=False)
    nets = {"whole": model, "shrunk": small, "built": built_anew(small).to(clip.device)}
    times = {key: found.median * 1e3 for key, found in latency(nets, clip, budget_s).items()}
    return {
        "net": name,
        "zeroed": share,
        "difference": report.max_difference,
        "largest_output": report.max_output,
        "parameters": [report.before.parameters, report.after.parameters],
        "flops": [report.before.flops, report.after.flops],
        "ms": times,
        "shrunk_to_built": times["shrunk"] / times["built"],
        "speedup": times["whole"] / times["shrunk"],
    }


def main() -> None:
    """Measure, print a line each, write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.75])
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds a net")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.nets:
        clip = torch.randn(1, 3, 16, args.size, args.size).to(args.device)
        for share in args.shares:
            row = measured(name, share, clip, args.budget)
            rows.append(row)
            ms = ", ".join(f"{key} {value:.1f} ms" for key, value in row["ms"].items())
            print(
                f"{name} {share:.0%} zeroed: {ms}; shrunk/built {row['shrunk_to_built']:.3f}, "
                f"{row['speedup']:.2f}x faster, difference {row['difference']:.1e}, outputs up to "
                f"{row['largest_output']:.3g}, FLOPs {row['flops'][1] / row['flops'][0]:.1%}",
                flush=True,
            )
    machine = cpu_name() if args.device == "cpu" else torch.cuda.get_device_name()
    found = {
        "machine": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "rows": rows,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
