"""What would remain of a model without the channels that its zeros make superfluous."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from regkit.coupling.channels import READER, WRITER, Channels, Coupling
from regkit.coupling.couple import couple
from regkit.coupling.cut import Dead, cut, silence
from regkit.coupling.replica import check_runs, fixed_seed, outputs, replica, unwrapped
from regkit.sparsity.remove import removable


@dataclass(frozen=True)
class Remaining:
    """Sizes of a model without the channels that it can lose with equal outputs, and with them.

    flops: of one run on the example: two for each multiplication with its addition, in
        convolutions, matrix products and attention; the rest is not counted.
    channels: (left, all) by the name of the set.
    notes: the channels that are never removed, with the reasons.
    """

    parameters: int
    all_parameters: int
    flops: int
    all_flops: int
    channels: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [(name, f"{left:,} of {whole:,}") for name, (left, whole) in self.channels.items()]
        rows += [
            ("parameters", _share(self.parameters, self.all_parameters)),
            ("FLOPs", _share(self.flops, self.all_flops)),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])


def remaining(model: nn.Module, example: Any, coupling: Coupling | None = None) -> Remaining:
    """Count what would remain if all channels were cut that can go with equal outputs.

    Those are the ones whose readers are all zero, or whose writers are all zero where that makes
    the channel zero (`Coupling`), and then those that only wrote to or read from removed ones.
    Works on a copy: the model stays as it is.

    example: an input as in training; FLOPs are those of its size.
    coupling: of this model, from `couple`, where it is known already.
    Raises: InputError when the model cannot be copied or does not run on the example.
    """
    inner = unwrapped(model)
    if coupling is None:
        coupling = couple(inner, example)
    copy = replica(inner)
    check_runs(copy, example, "remaining")
    all_parameters, all_flops = _parameters(copy), _flops(copy, example)
    dead = _dead(replica(inner), coupling)
    cut(copy, dead)
    return Remaining(
        parameters=_parameters(copy),
        all_parameters=all_parameters,
        flops=_flops(copy, example),
        all_flops=all_flops,
        channels={c.name: (int((~mask).sum()), len(mask)) for c, mask in dead},
        notes=coupling.notes,
    )


def _dead(copy: nn.Module, coupling: Coupling) -> Dead:
    """Return the superfluous channels; the replica is spent.

    What reads or writes one of them does nothing, and set to zero it may leave another one without
    writers or readers: hence the rounds, until none is found.
    """
    parameters = dict(copy.named_parameters(remove_duplicate=False))
    count = -1
    while True:
        idle = {c.name: _idle(c, parameters) for c in coupling.channels}
        before, count = count, sum(int(mask.sum()) for mask in idle.values())
        if count == before:
            return removable(coupling, idle)
        for role in (WRITER, READER):
            silence(copy, [(c, idle[c.name]) for c in coupling.channels], role)


@torch.no_grad()
def _idle(channels: Channels, parameters: dict[str, nn.Parameter]) -> Bool[Tensor, " groups"]:
    """Say of each channel whether nothing reads it, or nothing writes it."""
    idle = _all_zero(channels, READER, parameters)
    return idle | _all_zero(channels, WRITER, parameters) if channels.by_writers else idle


def _all_zero(
    channels: Channels, role: str, parameters: dict[str, nn.Parameter]
) -> Bool[Tensor, " groups"]:
    zero = torch.ones(channels.num_groups, dtype=torch.bool)
    for s in channels.slices:
        if s.role == role:
            parameter = parameters[s.tensor]
            used = (parameter != 0).movedim(s.axis, 0).reshape(parameter.shape[s.axis], -1)
            zero &= ~used.any(1).cpu()[s.index].any(1)
    return zero


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _flops(model: nn.Module, example: Any) -> int:
    """Count one run, on meta tensors where the model runs on them: there nothing is computed.

    There recurrent layers are matrix products too, while kernels that fuse them are not counted.
    """
    shadow = replica(model).to("meta")
    on_meta = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, example)
    try:
        return _counted(shadow, on_meta)
    except Exception:  # A value was read, or a tensor is made on a device that the code names.
        return _counted(model, example)


def _counted(model: nn.Module, example: Any) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), fixed_seed(model), counter:
        outputs(model, example)
    return counter.get_total_flops()


def _share(left: int, whole: int) -> str:
    return f"{left:,} of {whole:,} ({left / max(whole, 1):.1%})"
