"""Find the channels that a model does not need, and leave nothing that depends on them."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from regkit.pruning.fold_constants import fold_constants
from regkit.pruning.remove import removable
from regkit.structure.channels import READER, WRITER, Channels, Coupling
from regkit.structure.removal import Dead, zero_channels


def find_dead_channels(
    model: nn.Module, example: Any, coupling: Coupling
) -> tuple[Dead, tuple[str, ...]]:
    """Return the superfluous channels of a replica, silenced, and what had to stay.

    A channel goes when all that reads it is zero, or all that writes it where that makes the
    channel zero, or when it is a constant that moves into the biases of its readers. Without it
    another one may have no reader or no writer any more: hence the rounds, until none is found.

    model: its superfluous weights are set to zero and its biases changed, the outputs not.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    count = -1
    stay: dict[tuple[str, str], int] = {}
    while True:
        idle = {c.name: _idle(c, parameters) for c in coupling.channels}
        before, count = count, sum(int(mask.sum()) for mask in idle.values())
        if count == before:
            break
        for role in (WRITER, READER):
            zero_channels(model, [(c, idle[c.name]) for c in coupling.channels], role)
        stay = fold_constants(model, example, [(c, ~idle[c.name]) for c in coupling.channels])
    notes = [f"{name}: {number} {why}" for (name, why), number in stay.items()]
    notes += [text for c in coupling.channels if (text := _halves(c, parameters))]
    return removable(coupling, idle), tuple(notes)


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
            zero &= _zero(s.index, s.axis, parameters[s.tensor])
    return zero


def _zero(index: Tensor, axis: int, parameter: Tensor) -> Bool[Tensor, " groups"]:
    used = (parameter != 0).movedim(axis, 0).reshape(parameter.shape[axis], -1)
    return ~used.any(1).cpu()[index].any(1)


def _halves(channels: Channels, parameters: dict[str, nn.Parameter]) -> str | None:
    """Say how many channels are zero in one of the layers that write them, but not in all."""
    weights = [
        _zero(s.index, s.axis, parameters[s.tensor])
        for s in channels.slices
        if s.role == WRITER and parameters[s.tensor].ndim > 1
    ]
    if len(weights) < 2:
        return None
    some = torch.stack(weights).any(0) & ~torch.stack(weights).all(0)
    number = int(some.sum())
    if not number:
        return None
    return (
        f"{channels.name}: {number} are zero in some of the {len(weights)} weights that write them"
    )
