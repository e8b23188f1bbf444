"""Take channels out of a replica: smaller tensors, and the numbers that modules keep of them."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from regkit.structure.channels import Channels

Dead = Sequence[tuple[Channels, Bool[Tensor, " _"]]]


@torch.no_grad()
def remove_channels(model: nn.Module, dead: Dead) -> None:
    """Remove the dead channels from a replica, in place."""
    gone: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    widths: dict[tuple[str, str], int] = defaultdict(int)
    for channels, mask in dead:
        for s in channels.slices:
            gone[(s.tensor, s.axis)].append(s.index[mask].flatten())
        for w in channels.widths:
            widths[(w.module, w.attribute)] += w.per * int(mask.sum())
    for (name, axis), places in gone.items():
        _shrink(model, name, axis, torch.cat(places))
    for (name, attribute), fewer in widths.items():
        module = model.get_submodule(name)
        setattr(module, attribute, getattr(module, attribute) - fewer)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


@torch.no_grad()
def zero_channels(model: nn.Module, dead: Dead, role: str) -> None:
    """Set to zero what writes the dead channels of a replica, or what reads them, in place."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for channels, mask in dead:
        for s in channels.slices:
            if s.role == role:
                parameter = parameters[s.tensor]
                places = s.index[mask].flatten().to(parameter.device)
                parameter.index_fill_(s.axis, places, 0)


def _shrink(model: nn.Module, name: str, axis: int, places: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    held: Tensor = getattr(owner, leaf)
    keep = torch.ones(held.shape[axis], dtype=torch.bool)
    keep[places] = False
    kept = held.detach().index_select(axis, keep.nonzero().flatten().to(held.device))
    if isinstance(held, nn.Parameter):
        kept = nn.Parameter(kept, requires_grad=held.requires_grad)
    setattr(owner, leaf, kept)
