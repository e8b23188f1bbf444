"""Passes to compare bodies on: weights of odd sizes and layouts, parameters, states."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regkit.ops import prox_pass, reference
from regkit.ops.formula import KEEP, SHRINK, Formula
from regkit.ops.gpu import launch as gpu
from regkit.ops.gpu.launch_tables import SIZES, Sizes, prepare
from regkit.ops.kernel_args import (
    NUM_COEFFICIENTS,
    NUM_PARAMS,
    GroupAxis,
    KernelArgs,
    LaunchTable,
    Param,
)
from regkit.ops.prox_pass import ProxPass
from regkit.penalties import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Box,
    ElasticNet,
    LHalf,
    LogSum,
    WeightDecay,
    WeightPenalty,
)

# Penalties whose strength makes entries of size 1 fall on all sides of the kinks.
PENALTIES: dict[str, WeightPenalty] = {
    "l1": L1(2.0),
    "l2": L2(3.0),
    "elastic_net": ElasticNet(2.0, l1_ratio=0.25),
    "weight_decay": WeightDecay(0.3),
    "mcp": MCP(0.7, gamma=2.0),
    "scad": SCAD(0.4),
    "l0": L0(1.0),
    "l_half": LHalf(1.0),
    "log_sum": LogSum(0.6, eps=0.5),
    "box": Box(1.0, low=-0.4, high=0.3),
}
FORMULAS: dict[str, Formula] = {
    "shrink": SHRINK,
    "keep": KEEP,
    **{name: p.kernel for name, p in PENALTIES.items() if p.kernel is not None},
}
COEFFICIENTS = {
    "shrink": (0.3, 1.0, 0.5),
    "keep": (40.0,),
    **{name: p.coefficients(1) for name, p in PENALTIES.items()},
}
SHAPES = [(130,), (1,), (), (0, 4), (3, 2, 3, 1, 2), (256,), (7, 5)]


def kernels_of(*chain: str) -> tuple[Formula, ...]:
    return tuple(FORMULAS[name] for name in chain)


def param(chain: Sequence[str] = (), **numbers: float) -> list[float]:
    """Return a row of parameters of AdamW-like numbers."""
    row = [0.0] * NUM_PARAMS
    usual = {
        "RATE": 0.2, "LR": 0.1, "EPS": 1e-3, "LOG_BETA1": math.log(0.9), "REST1": 0.1,
        "LOG_BETA2": math.log(0.99), "REST2": 0.01, "DECAY": 0.02,
    }  # fmt: skip
    for name, number in {**usual, **numbers}.items():
        row[Param[name]] = number
    for k, name in enumerate(chain):
        begin = Param.FIRST + NUM_COEFFICIENTS * k
        row[begin : begin + len(COEFFICIENTS[name])] = COEFFICIENTS[name]
    return row


def laid(values: Tensor, layout: str) -> Tensor:
    """Return a copy: "plain", "last" (channels, where there are five axes), or "odd" addresses."""
    if layout == "odd":
        room = torch.empty(values.numel() + 1, dtype=values.dtype, device=values.device)
        return room[1:].view(values.shape).copy_(values)
    last = layout == "last" and values.ndim == 5
    form = torch.channels_last_3d if last else torch.contiguous_format
    return values.clone(memory_format=form)


def args_of(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    layout: str = "plain",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    kept: torch.dtype = torch.float32,
) -> KernelArgs:
    """Draw weights and all that any optimizer keeps, for two rows of parameters."""
    draw = torch.Generator().manual_seed(0)

    def drawn(type_: torch.dtype, positive: bool = False) -> list[Tensor]:
        found = [torch.randn(shape, generator=draw) for shape in shapes]
        found = [t.square() + 1e-4 if positive else t for t in found]
        return [laid(t.to(device, type_), layout) for t in found]

    weights, grads = drawn(dtype), drawn(dtype)
    counts = [torch.tensor(float(k + 1), device=device) for k in range(len(weights))]
    rows = [k % 2 for k in range(len(weights))]
    seconds = drawn(kept, True)
    return KernelArgs(weights, rows, seconds, counts, drawn(kept, True), drawn(kept), grads)


def trimmed(args: KernelArgs, metric: str, update: str) -> KernelArgs:
    """Leave what this pass is given: "plain" is SGD without momentum, "amsgrad" is AdamW's."""
    adamw = update in ("adamw", "amsgrad")
    return replace(
        args,
        grads=args.grads if update != "none" else (),
        exp_avgs=args.exp_avgs if update not in ("none", "plain") else (),
        exp_avg_sqs=args.exp_avg_sqs if adamw or metric == "adaptive" else (),
        max_exp_avg_sqs=args.max_exp_avg_sqs if update == "amsgrad" else (),
        step_counts=args.step_counts if adamw or metric == "adaptive" else (),
    )


def gated(args: KernelArgs) -> KernelArgs:
    """Give every entry, or group of a geometry, a byte of any kind."""
    if args.geometry is None:
        like = args.weights
    else:
        firsts = {int(p[GroupAxis.BUNDLE]): p for p in reversed(args.geometry)}
        counts = [(p[GroupAxis.COUNT1] * p[GroupAxis.COUNT2]).item() for p in firsts.values()]
        like = [args.weights[0].new_empty(int(n)) for n in reversed(counts)]
    draw = torch.Generator().manual_seed(1)
    gates = [
        torch.empty_like(t, dtype=torch.uint8).copy_(torch.randint(16, t.shape, generator=draw))
        for t in like
    ]
    return replace(args, gates=gates)


WRITTEN = ("weights", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "gates")


def copied(args: KernelArgs) -> KernelArgs:
    """Return the same with tensors of its own, at addresses as odd."""

    def copy(tensors: Sequence[Tensor]) -> list[Tensor]:
        odd = [t.numel() > 0 and t.data_ptr() % 16 != 0 for t in tensors]
        return [laid(t, "odd") if o else t.clone() for t, o in zip(tensors, odd, strict=True)]

    return replace(args, **{name: copy(getattr(args, name)) for name in WRITTEN})


@dataclass(frozen=True, eq=False)
class Call:
    """A pass, to be made by both bodies."""

    args: KernelArgs
    formulas: tuple[Formula, ...]
    metric: str = "scalar"
    update: str = "none"
    sizes: Sizes = SIZES

    @property
    def kind(self) -> str:
        return {"plain": "sgd", "amsgrad": "adamw"}.get(self.update, self.update)

    def table(self) -> LaunchTable:
        table = prepare(self.args, self.formulas, self.metric, self.kind, self.sizes)
        assert table is not None
        return table

    def prepared(self) -> ProxPass:
        """Return the pass as `prepare` gives it, of the usual sizes."""
        once = prox_pass.prepare(self.args, self.formulas, self.metric, self.kind)
        assert once is not None
        return once

    def by_kernel(
        self, params: Tensor, skip: Tensor | None = None, scale: Tensor | None = None,
        table: LaunchTable | None = None,
    ) -> None:  # fmt: skip
        table = self.table() if table is None else table
        gpu.run(self.args, table, params, skip, scale, self.kind, self.metric, list(self.formulas))

    def by_reference(
        self, params: Tensor, skip: Tensor | None = None, scale: Tensor | None = None
    ) -> None:
        reference.run(
            self.args, LaunchTable(()), params, skip, scale, self.kind, self.metric,
            list(self.formulas),
        )  # fmt: skip
