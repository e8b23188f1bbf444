"""A copy of a model without some of its channels."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.structure.channels import Channels, Coupling
from regkit.structure.removal import Dead, remove_channels
from regkit.structure.replica import replica, unwrapped


def remove(
    model: nn.Module, coupling: Coupling, dead: Mapping[str, Bool[Tensor, " _"]]
) -> nn.Module:
    """Return a copy of the model, in eval mode, without the dead channels.

    Its outputs are the model's where all that reads the dead channels is zero, or all that writes
    them (`Channels.by_writers`). One channel of each set stays, and a recurrent layer, which keeps
    one hidden size for all its layers and directions, loses the fewest that any of them can.

    dead: by the name of the set, True for each channel that goes.
    Raises: InputError for a name that the coupling does not have, or another number of channels.
    """
    known = {c.name: c for c in coupling.channels}
    for name, mask in dead.items():
        if name not in known:
            raise InputError(
                f"remove got channels of {name!r}, which the coupling does not have. Give names "
                "of coupling.channels."
            )
        if len(mask) != known[name].num_groups:
            raise InputError(
                f"remove got {len(mask)} flags for {name!r}, which has {known[name].num_groups} "
                "channels. Give one for each."
            )
    copy = replica(unwrapped(model))
    remove_channels(copy, removable(coupling, dead))
    return copy


def removable(coupling: Coupling, dead: Mapping[str, Bool[Tensor, " _"]]) -> Dead:
    """Return what of the dead channels can go: not the last of a set, evenly where they must."""
    chosen = [(c, _all_but_one(dead[c.name].cpu())) for c in coupling.channels if c.name in dead]
    return [(c, first(mask, _fewest(c, coupling, chosen))) for c, mask in chosen]


def rounded(dead: Dead, multiple_of: int) -> Dead:
    """Return the dead channels that can go so that a multiple of each set stays, or all of it."""
    return [(c, first(mask, _most(mask, multiple_of))) for c, mask in dead]


def _most(mask: Bool[Tensor, " groups"], multiple_of: int) -> int:
    live = int((~mask).sum())
    return max(len(mask) - -(-live // multiple_of) * multiple_of, 0)


def _fewest(one: Channels, coupling: Coupling, chosen: Dead) -> int:
    """Return how many can go of each of the sets that this one keeps equal in size."""
    counts = {c.name: int(mask.sum()) for c, mask in chosen}
    alike = [one] if one.together is None else coupling.channels
    return min(counts.get(c.name, 0) for c in alike if c.together == one.together)


def _all_but_one(mask: Bool[Tensor, " groups"]) -> Bool[Tensor, " groups"]:
    return first(mask, len(mask) - 1)


def first(mask: Bool[Tensor, " groups"], count: int) -> Bool[Tensor, " groups"]:
    """Keep the first `count` that are True, at most."""
    return mask & (torch.cumsum(mask, 0) <= count)
