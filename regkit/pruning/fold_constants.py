"""Channels that no input changes: dead filters whose batch norm still emits a number.

Such a channel can go where the next layer can take that number into its bias. Where that layer pads
with zeros it cannot: at the borders it sees zeros instead of the number.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_map

from regkit.structure.channels import READER, WRITER, Channels, Slice
from regkit.structure.replica import fixed_seed, outputs

# Differences within a channel, in float64 and relative to its largest entry, that are rounding.
_ROUNDING = 1e-12

PADDED = "emit a constant that the next layer, which pads with zeros, cannot take into its bias"
VARYING = "are written by constants alone, yet differ from place to place"
UNTOLD = "are written by constants alone, and are read where no layer can take these"


@torch.no_grad()
def fold_constants(
    model: nn.Module, example: Any, sets: Sequence[tuple[Channels, Bool[Tensor, " _"]]]
) -> dict[tuple[str, str], int]:
    """Move constant channels of a replica into the biases of what reads them, in place.

    Afterwards nothing reads them any more: their readers are zero. The outputs in eval mode stay as
    they were, up to the rounding of the biases.

    sets: with True for each channel to look at.
    Returns: how many constant channels had to stay, by the set and the reason.
    """
    wanted = [(c, mask & _written_by_constants(c, model)) for c, mask in sets]
    wanted = [(c, mask) for c, mask in wanted if bool(mask.any())]
    if not wanted:
        return {}
    modules = {name for c, _ in wanted for s in c.slices if (name := _reader(s, model)) is not None}
    seen = _inputs(model, example, modules)
    stay: dict[tuple[str, str], int] = {}
    for channels, mask in wanted:
        readers = [s for s in channels.slices if s.role == READER]
        for number in mask.nonzero().flatten().tolist():
            if (why := _moved(model, readers, number, seen)) is not None:
                stay[(channels.name, why)] = stay.get((channels.name, why), 0) + 1
    return stay


def _written_by_constants(channels: Channels, model: nn.Module) -> Bool[Tensor, " groups"]:
    """Say of each channel whether all weights that make it from other channels are zero."""
    dead = torch.ones(channels.num_groups, dtype=torch.bool)
    for s in channels.slices:
        if s.role != WRITER:
            continue
        owner, _, leaf = s.tensor.rpartition(".")
        module, weight = model.get_submodule(owner), model.get_parameter(s.tensor)
        makes = isinstance(module, _ConvNd | nn.Linear | nn.RNNBase | nn.Embedding)
        alone = isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels
        if makes and not alone and leaf.startswith("weight"):  # alone: hands its own channel on
            used = (weight != 0).movedim(s.axis, 0).flatten(1).any(1).cpu()
            dead &= ~used[s.index].any(1)
    return dead


def _moved(
    model: nn.Module, readers: Sequence[Slice], number: int, seen: Mapping[str, list[Tensor]]
) -> str | None:
    """Move one channel into all that reads it, or return why it stays."""
    values: list[Float[Tensor, " size"]] = []
    for s in readers:
        name = _reader(s, model)
        if name is None or not seen[name]:
            return UNTOLD
        found = torch.cat([x[s.index[number]] for x in seen[name]], dim=1)
        size = found.abs().max()
        if not bool(torch.isfinite(size)):
            return VARYING
        if bool((found - found[:, :1]).abs().max() > _ROUNDING * size):
            return VARYING
        values.append(found[:, 0])
        if bool(found.any()) and not _takes(model.get_submodule(name)):
            return PADDED
    for s, value in zip(readers, values, strict=True):
        _fold(model, s, s.index[number], value)
    return None


def _reader(s: Slice, model: nn.Module) -> str | None:
    """Return the layer whose input this slice reads; None for what is not told by a hook on it."""
    if s.role != READER:
        return None
    owner, _, leaf = s.tensor.rpartition(".")
    module = model.get_submodule(owner)
    plain = isinstance(module, _ConvNd | nn.Linear) and leaf == "weight"
    if isinstance(module, _ConvNd) and module.groups > 1:  # its columns stand for several channels
        return None
    first = isinstance(module, nn.RNNBase) and leaf in ("weight_ih_l0", "weight_ih_l0_reverse")
    return owner if plain or (first and module.bias) else None


def _takes(module: nn.Module) -> bool:
    """Say whether a bias can stand for a constant input at each place of the output."""
    if isinstance(module, _ConvTransposeNd):
        return False
    if isinstance(module, _ConvNd):
        padded = module.padding if isinstance(module.padding, tuple) else (module.padding,)
        return module.padding_mode != "zeros" or set(padded) <= {0, "valid"}
    return True


def _fold(model: nn.Module, s: Slice, places: Tensor, value: Float[Tensor, " size"]) -> None:
    owner, _, leaf = s.tensor.rpartition(".")
    module = model.get_submodule(owner)
    weight = model.get_parameter(s.tensor)
    places = places.to(weight.device)
    if bool(value.any()):
        taken = weight.index_select(s.axis, places).double().movedim(s.axis, -1)
        added = (taken @ value.to(weight.device)).reshape(len(taken), -1).sum(1)
        bias = leaf.replace("weight", "bias")
        if module._parameters.get(bias) is None:
            zeros = torch.zeros_like(added, dtype=weight.dtype)
            module._parameters[bias] = nn.Parameter(zeros, requires_grad=weight.requires_grad)
        held = module.get_parameter(bias)
        held.copy_(held.double() + added)
    weight.index_fill_(s.axis, places, 0)


def _inputs(model: nn.Module, example: Any, names: set[str]) -> dict[str, list[Tensor]]:
    """Return what each layer is given, in float64, as (channels, all else), call by call."""
    exact = deepcopy(model).double()
    draw = torch.Generator().manual_seed(0)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_caught(exact.get_submodule(name), seen[name]))
        for _ in range(2):
            drawn = tree_map(lambda x: _drawn(x, draw), example)
            with fixed_seed(exact):
                outputs(exact, drawn)
    return seen


def _drawn(leaf: Any, draw: torch.Generator) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(leaf.device)
    return leaf


@contextmanager
def _caught(module: nn.Module, found: list[Tensor]) -> Iterator[None]:
    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        axis = x.ndim - 1 - _num_axes(module)  # counted from the end: the batch may be missing
        found.append(x.movedim(axis, 0).flatten(1))

    handle = module.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _num_axes(module: nn.Module) -> int:
    """Return how many axes lie behind that of the channels in the layer's input."""
    return len(module.kernel_size) if isinstance(module, _ConvNd) else 0
