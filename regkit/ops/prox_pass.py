"""One pass over many weights: the optimizer's update, if wanted, then the prox in its metric.

`prepare` gives a pass by the kernels that serve the weights where they are: C on a CPU, Triton on
CUDA (and, interpreted, on a CPU where TRITON_INTERPRET=1). Passes reach them through two ops that
torch knows, `regkit::prox_entries` and `regkit::prox_groups`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from regkit.ops import reference
from regkit.ops.formula import FORMULAS, Formula
from regkit.ops.gpu import launch as gpu
from regkit.ops.kernel_args import KernelArgs, LaunchTable
from regkit.ops.native import launch as native


class Backend(Protocol):
    """A module that makes the passes over weights of some device."""

    def prepare(
        self, args: KernelArgs, formulas: Sequence[Formula], metric: str, update: str
    ) -> LaunchTable | None:
        """Lay down what the kernels read, None where they do not serve."""
        ...

    def refresh(self, table: LaunchTable, args: KernelArgs) -> LaunchTable | None:
        """Lay down where the gradients are now, None where the kernels no longer serve."""
        ...

    def run(
        self,
        args: KernelArgs,
        table: LaunchTable,
        params: Tensor,
        skip: Tensor | None,
        scale: Tensor | None,
        update: str,
        metric: str,
        formulas: Sequence[Formula],
    ) -> None:
        """Make the pass."""
        ...


# Who serves weights on which type of device; no entry: torch does, elsewhere.
BACKENDS: dict[str, Backend] = {
    "cpu": gpu if os.environ.get("TRITON_INTERPRET") == "1" else native,
    "cuda": gpu,
}


@dataclass(frozen=True, eq=False)
class ProxPass:
    """A pass that is made again and again, with other parameters and gradients each time.

    args: with gradients for the time of a step only, so that none is kept alive.
    table: None for the bodies in plain torch, the reference; addresses: of the weights and gates
        in it.
    """

    args: KernelArgs
    formulas: tuple[Formula, ...]
    metric: str
    update: str = "none"
    table: LaunchTable | None = None
    addresses: Tensor | None = None

    def __call__(
        self,
        params: Tensor,
        skip: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """Update the weights in place.

        params: (rows, NUM_PARAMS), float64 on the CPU or float32 on the device of the weights.
        skip: 0-d or (1,) on the device; nothing is written where it is not 0 (found_inf).
        scale: likewise; gradients are divided by it.
        """
        args, table = self.args, self.table
        given = (params, skip, scale, self.update, self.metric)
        if not torch.compiler.is_compiling():
            backend = reference if table is None else BACKENDS[args.weights[0].device.type]
            backend.run(args, table or LaunchTable(()), *given, self.formulas)
            return
        lists = (args.weights, args.grads, args.exp_avgs, args.exp_avg_sqs)
        lists = (*lists, args.max_exp_avg_sqs, args.step_counts, args.gates)
        ops = torch.ops.regkit
        op, geometry = ops.prox_entries, ()
        if args.geometry is not None:
            op, geometry = ops.prox_groups, (args.geometry,)
        params, *rest = given
        op.default(
            *map(list, lists),
            list(args.param_row),
            params,
            *geometry,
            None if table is None else [self.addresses, *table.table],
            *rest,
            [formula.key for formula in self.formulas],
        )

    def count_step(self, taken: float | Tensor = 1.0) -> None:
        """Raise the numbers of steps, if the pass updates, before it.

        taken: 0 where the step is skipped; 0-d on the device, or 1.
        """
        counts = list(self.args.step_counts)
        if self.update == "none" or not counts:
            return
        if self.table is not None and BACKENDS[self.args.weights[0].device.type] is native:
            native.count_step(self.table)
        elif isinstance(taken, Tensor):
            # Without alpha, torch reads the number on the host.
            torch._foreach_add_(counts, taken, alpha=1.0)  # pyright: ignore[reportPrivateImportUsage]: no public name
        else:
            torch._foreach_add_(counts, taken)  # pyright: ignore[reportPrivateImportUsage]: no public name

    def refresh(self, grads: Sequence[Tensor]) -> "ProxPass | None":
        """Return the pass with the gradients of this step, None where kernels no longer serve.

        grads: with the strides of the weights.
        """
        if self.update == "none":
            return self
        args, table = replace(self.args, grads=grads), self.table
        if table is not None:
            table = BACKENDS[args.weights[0].device.type].refresh(table, args)
            if table is None:
                return None
        return replace(self, args=args, table=table)

    def without_gradients(self) -> "ProxPass":
        """Return the pass as it is kept between steps, when gradients are free to go."""
        return replace(self, args=replace(self.args, grads=()))


def prepare(
    args: KernelArgs, formulas: Sequence[Formula], metric: str, update: str = "none"
) -> ProxPass | None:
    """Return a pass by kernels, None where there are none that serve these weights.

    formulas: the proxes of entries, one after the other; of groups (`args.geometry`), one of
        groups.
    Raises: InputError for a formula that cannot be translated.
    """
    if not args.weights:
        return None
    backend = BACKENDS.get(args.weights[0].device.type)
    table = None if backend is None else backend.prepare(args, formulas, metric, update)
    if table is None:
        return None
    addresses = torch.tensor(_addresses(args))
    return ProxPass(replace(args, grads=()), tuple(formulas), metric, update, table, addresses)


def _addresses(args: KernelArgs) -> list[int]:
    return [tensor.data_ptr() for tensor in (*args.weights, *args.gates)]


def _entries(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    step_counts: list[Tensor],
    gates: list[Tensor],
    param_row: list[int],
    params: Tensor,
    table: list[Tensor] | None,
    skip: Tensor | None,
    scale: Tensor | None,
    update: str,
    metric: str,
    formulas: list[str],
    geometry: Tensor | None = None,
) -> None:
    """Be the body of `regkit::prox_entries` on every device.

    table: addresses of weights and gates, and what the kernels read. A program traced by
    torch.compile may hand in copies of those, to be written back: kernels would write past them.
    """
    args = KernelArgs(
        *(weights, param_row, exp_avg_sqs, step_counts, max_exp_avg_sqs, exp_avgs, grads),
        geometry=geometry,
        gates=gates,
    )
    run = reference.run
    if table is not None and table[0].tolist() == _addresses(args):
        run = BACKENDS[weights[0].device.type].run
    known, rest = [FORMULAS[key] for key in formulas], LaunchTable((table or [])[1:])
    run(args, rest, params, skip, scale, update, metric, known)


def _groups(*given: object) -> None:
    """Be the body of `regkit::prox_groups` on every device."""
    before, geometry, rest = given[:9], given[9], given[10:]
    _entries(*before, *rest, geometry=geometry)  # pyright: ignore[reportArgumentType]: as torch has checked


def _nothing(*given: object) -> None:
    """Stand for a pass while a program is traced: it returns nothing."""


_LISTS = (
    "Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor[] step_counts, Tensor(e!)[] gates, int[] param_row, "
    "Tensor params, "
)
_REST = (
    "Tensor[]? table, Tensor? skip, Tensor? scale, str update, str metric, str[] formulas) -> ()"
)
LIBRARY = torch.library.Library("regkit", "DEF")
for _name, _body, _geometry in (
    ("prox_entries", _entries, ""),
    ("prox_groups", _groups, "Tensor geometry, "),
):
    LIBRARY.define(f"{_name}({_LISTS}{_geometry}{_REST}")
    LIBRARY.impl(_name, _body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"regkit::{_name}", _nothing, lib=LIBRARY)
