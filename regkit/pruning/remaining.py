"""What would remain of a model without what its zeros, and its low ranks, make superfluous."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regkit.pruning.counts import num_flops, num_parameters
from regkit.pruning.dead_channels import find_dead_channels
from regkit.pruning.low_rank import split_low_rank
from regkit.structure.channels import Coupling
from regkit.structure.coupling import couple
from regkit.structure.removal import remove_channels
from regkit.structure.replica import check_runs, replica, unwrapped


@dataclass(frozen=True)
class Remaining:
    """Sizes of a model without what it can lose with equal outputs, and with it.

    flops: of one run on the example: two for each multiplication with its addition, in
        convolutions, matrix products and attention; the rest is not counted.
    channels: (left, all) by the name of the set.
    ranks: (left, full) by the name of each layer that two thin ones would replace.
    notes: the channels that are never removed, with the reasons.
    """

    parameters: int
    all_parameters: int
    flops: int
    all_flops: int
    channels: dict[str, tuple[int, int]]
    ranks: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [(name, f"{left:,} of {whole:,}") for name, (left, whole) in self.channels.items()]
        rows += [(f"{name}, rank", f"{r:,} of {full:,}") for name, (r, full) in self.ranks.items()]
        rows += [
            ("parameters", _share(self.parameters, self.all_parameters)),
            ("FLOPs", _share(self.flops, self.all_flops)),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])


def remaining(model: nn.Module, example: Any, coupling: Coupling | None = None) -> Remaining:
    """Count what would remain if all were cut that can go with equal outputs.

    Those are the channels that `shrink` removes, and layers of low rank that compute less as two;
    `shrink` measures these, and leaves whole what is no faster so. Works on a copy: the model stays
    as it is.

    example: an input as in training; FLOPs are those of its size.
    coupling: of this model, from `couple`, where it is known already.
    Raises: InputError when the model cannot be copied or does not run on the example.
    """
    inner = unwrapped(model)
    if coupling is None:
        coupling = couple(inner, example)
    copy = replica(inner)
    check_runs(copy, example, "remaining")
    all_parameters, all_flops = num_parameters(copy), num_flops(copy, example)
    dead, stay = find_dead_channels(copy, example, coupling)
    remove_channels(copy, dead)
    ranks, kept_whole = split_low_rank(copy, example, timed=False)
    return Remaining(
        parameters=num_parameters(copy),
        all_parameters=all_parameters,
        flops=num_flops(copy, example),
        all_flops=all_flops,
        channels={c.name: (int((~mask).sum()), len(mask)) for c, mask in dead},
        ranks=ranks,
        notes=(*coupling.notes, *stay, *kept_whole),
    )


def _share(left: int, whole: int) -> str:
    return f"{left:,} of {whole:,} ({left / max(whole, 1):.1%})"
