"""One pass over many weights: the optimizer's update, if wanted, then the prox in its metric.

Two ops, registered with torch: `regkit::sweep_entries` and `regkit::sweep_groups`. The bodies here
are plain torch and the reference. Where a `LaunchTable` was made for the kernels of a device
(`regkit.ops.native.launch` in C on a CPU, `regkit.ops.gpu` in Triton on CUDA), those run instead.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regkit.ops import reference  # noqa: F401  registers the bodies
from regkit.ops.kernel_args import GroupAxis, KernelArgs, LaunchTable


@dataclass(frozen=True, eq=False)
class ProxPass:
    """A pass that is made again and again, with other rules each time."""

    work: KernelArgs
    formulas: tuple[str, ...]
    metric: str
    update: str = "none"
    table: LaunchTable | None = None
    # Tallies: non-zero entries, live groups, value; a row for each owner.
    owners: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if self.table is not None:
            owners = self.table.owners
        elif self.work.geometry is None:
            owners = torch.arange(len(self.work.weights))
        else:
            owners = self.work.geometry[:, GroupAxis.BUNDLE].unique()
        object.__setattr__(self, "owners", owners)

    def __call__(
        self,
        rules: Tensor,
        skip: Tensor | None = None,
        scale: Tensor | None = None,
        tally: Tensor | None = None,
    ) -> None:
        """Update the weights in place.

        rules: (rules, NUM_PARAMS), float64 on the CPU or float32 on the device of the weights.
        skip: 0-d or (1,) on the device; nothing is written where it is not 0 (found_inf).
        scale: likewise; gradients are divided by it.
        tally: (len(owners), 3) float32 on the device, to be written: non-zeros, live groups, value.
        """
        ops = torch.ops.regkit
        op = ops.sweep_entries if self.work.geometry is None else ops.sweep_groups
        geometry = () if self.work.geometry is None else (self.work.geometry,)
        # Without a table, or with one of no numbers, the bodies in plain torch run.
        numbers = (list(self.table.numbers) or None) if self.table is not None else None
        op.default(
            *self.work.lists(),
            list(self.work.which),
            rules,
            *geometry,
            numbers,
            skip,
            scale,
            tally,
            self.update,
            self.metric,
            list(self.formulas),
        )
