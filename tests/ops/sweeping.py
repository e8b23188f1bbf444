"""Sweeps to compare bodies on: weights of odd sizes and layouts, rules, states."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regkit.ops.gpu import launch as sweeps
from regkit.ops.gpu.launch_tables import SIZES, Numbers, Sizes, tabulate
from regkit.ops.kernel_args import NUM_PARAMS, GroupAxis, KernelArgs, LaunchTable, Param
from regkit.ops.reference import reference_entries, reference_groups

# Strength, and what else a formula has, so that entries of size 1 fall on all sides of its kinks.
COEFFICIENTS = {
    "elastic": (2.0, 0.0, 0.0, 0.0, 0.0),
    "ridge": (1.0, 3.0, 0.0, 0.0, 0.0),
    "decay": (0.0, 0.0, 0.0, 0.3, 0.0),
    "mcp": (0.7, 0.0, 0.0, 2.0, 0.0),
    "scad": (0.4, 0.0, 0.0, 3.7, 0.0),
    "hard": (1.0, 0.0, 0.0, 0.0, 0.0),
    "half": (1.0, 0.0, 0.0, 0.0, 0.0),
    "log_sum": (0.6, 0.0, 0.0, 0.5, 0.0),
    "box": (0.0, 0.0, 0.0, -0.4, 0.3),
    "shrink": (0.3, 1.0, 0.5, 0.0, 0.0),
}
SHAPES = [(130,), (1,), (), (0, 4), (3, 2, 3, 1, 2), (256,), (7, 5)]
NAMES = {"ridge": "elastic"}


def rule(chain: Sequence[str] = (), **numbers: float) -> list[float]:
    """Return a row of rules of AdamW-like numbers."""
    row = [0.0] * NUM_PARAMS
    usual = {
        "RATE": 0.2, "LR": 0.1, "EPS": 1e-3, "LOG_BETA1": math.log(0.9), "REST1": 0.1,
        "LOG_BETA2": math.log(0.99), "REST2": 0.01, "DECAY": 0.02,
    }  # fmt: skip
    for name, number in {**usual, **numbers}.items():
        row[Param[name]] = number
    for k, name in enumerate(chain):
        row[Param.FIRST + 5 * k : Param.FIRST + 5 * k + 5] = COEFFICIENTS[name]
    return row


def laid(values: Tensor, layout: str) -> Tensor:
    """Return a copy: "plain", "last" (channels, where there are five axes), or "odd" addresses."""
    if layout == "odd":
        room = torch.empty(values.numel() + 1, dtype=values.dtype, device=values.device)
        return room[1:].view(values.shape).copy_(values)
    last = layout == "last" and values.ndim == 5
    form = torch.channels_last_3d if last else torch.contiguous_format
    return values.clone(memory_format=form)


def work_of(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    layout: str = "plain",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    kept: torch.dtype = torch.float32,
) -> KernelArgs:
    """Draw weights and all that any optimizer keeps, for two rules."""
    draw = torch.Generator().manual_seed(0)

    def drawn(type_: torch.dtype, positive: bool = False) -> list[Tensor]:
        found = [torch.randn(shape, generator=draw) for shape in shapes]
        found = [t.square() + 1e-4 if positive else t for t in found]
        return [laid(t.to(device, type_), layout) for t in found]

    weights, grads = drawn(dtype), drawn(dtype)
    counts = [torch.tensor(float(k + 1), device=device) for k in range(len(weights))]
    which = [k % 2 for k in range(len(weights))]
    seconds = drawn(kept, True)
    return KernelArgs(weights, which, seconds, counts, drawn(kept, True), drawn(kept), grads)


def trimmed(work: KernelArgs, metric: str, update: str) -> KernelArgs:
    """Leave what this sweep is given: "plain" is SGD without momentum, "amsgrad" is AdamW's."""
    adamw = update in ("adamw", "amsgrad")
    return replace(
        work,
        grads=work.grads if update != "none" else (),
        firsts=work.firsts if update not in ("none", "plain") else (),
        seconds=work.seconds if adamw or metric == "root" else (),
        maxes=work.maxes if update == "amsgrad" else (),
        counts=work.counts if adamw or metric == "root" else (),
    )


def copied(work: KernelArgs) -> KernelArgs:
    """Return the same with tensors of its own, at addresses as odd."""

    def copy(tensors: Sequence[Tensor]) -> list[Tensor]:
        odd = [t.numel() > 0 and t.data_ptr() % 16 != 0 for t in tensors]
        return [laid(t, "odd") if o else t.clone() for t, o in zip(tensors, odd, strict=True)]

    lists = {k: copy(getattr(work, k)) for k in ("weights", "firsts", "seconds", "maxes")}
    return replace(work, **lists)


@dataclass(frozen=True, eq=False)
class Call:
    """A sweep, to be made by both bodies."""

    work: KernelArgs
    formulas: tuple[str, ...]
    metric: str = "flat"
    update: str = "none"
    sizes: Sizes = SIZES

    @property
    def kind(self) -> str:
        return {"plain": "sgd", "amsgrad": "adamw"}.get(self.update, self.update)

    def table(self) -> LaunchTable:
        table = tabulate(self.work, self.formulas, self.metric, self.kind, self.sizes)
        assert table is not None
        return table

    def by_kernel(
        self, rules: Tensor, skip: Tensor | None = None, scale: Tensor | None = None,
        table: LaunchTable | None = None,
    ) -> Tensor:  # fmt: skip
        """ProxPass with the kernels; return the tally by owner."""
        table = self.table() if table is None else table
        tally = torch.full((len(table.owners), 3), float("nan"), device=rules.device)
        self._call(sweeps.sweep_entries, sweeps.sweep_groups, rules, list(table.numbers),
                   skip, scale, tally)  # fmt: skip
        return tally.new_zeros(self._owners(), 3).index_add_(0, table.owners, tally)

    def by_reference(
        self, rules: Tensor, skip: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """ProxPass with the reference; return its tally."""
        tally = torch.zeros(self._owners(), 3, device=rules.device)
        self._call(reference_entries, reference_groups, rules, None, skip, scale, tally)
        return tally

    def _call(self, entries, groups, rules, numbers, skip, scale, tally) -> None:
        rest = (numbers, skip, scale, tally, self.kind, self.metric, list(self.formulas))
        lists = (*self.work.lists(), list(self.work.which), rules)
        if self.work.geometry is None:
            entries(*lists, *rest)
        else:
            groups(*lists, self.work.geometry, *rest)

    def _owners(self) -> int:
        if self.work.geometry is None:
            return len(self.work.weights)
        return len(self.work.geometry[:, GroupAxis.BUNDLE].unique())


def numbers_of(table: LaunchTable) -> Numbers:
    return Numbers(*table.numbers)
