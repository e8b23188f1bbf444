"""Hidden units of recurrent layers: what writes one, and what reads it."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from regkit.structure.channels import READER, WRITER, Slice, Width
from regkit.structure.groups import GroupSet, Piece, along
from regkit.structure.selectors import clean_name

PROJECTED = (
    "has projections, and torch runs no LSTM whose hidden units are as few as these, so none is cut"
)


def units(model: nn.Module, example: Any = None) -> tuple[list[GroupSet], Sequence[str]]:
    """Return the hidden units of each recurrent layer and direction, and what is left out.

    A unit is the rows of all its gates in both weights and both biases. With all of them zero it
    stays at its initial state, zero unless the caller gives another (tanh(0) = 0, and the gates
    only mix zeros).
    """
    group_sets, notes = [], []
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.proj_size:
            notes.append(f"{clean_name(name) or 'LSTM'}: {PROJECTED}")
            continue
        for label, leaves in _layers(module):
            owned = [(leaf, module._parameters.get(leaf)) for leaf in leaves]
            found = [(leaf, p) for leaf, p in owned if p is not None and p not in seen]
            seen |= {p for _, p in found}
            pieces = tuple(_rows(name, leaf, p, module) for leaf, p in found)
            if pieces:
                group_sets.append(GroupSet(_dotted(clean_name(name), label), pieces))
    return group_sets, notes


def suffixes(layer: nn.RNNBase) -> list[list[str]]:
    """Return the endings of the weights' names, by layer and direction."""
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    return [[f"_l{i}{d}" for d in directions] for i in range(layer.num_layers)]


def unit_slices(
    name: str, layer: nn.RNNBase, level: int, direction: int, channels: Int[Tensor, " groups"]
) -> tuple[list[Slice], list[Width]]:
    """Return what holds the given hidden units of one layer and direction.

    Their rows of all gates write them. Their columns of the weights that lead to the next time
    step and to the next layer read them.
    """
    ends, hidden = suffixes(layer), layer.hidden_size
    end = ends[level][direction]
    column = channels[:, None]
    gates = layer.get_parameter(f"weight_hh{end}").shape[0] // hidden
    rows = column + hidden * torch.arange(gates)
    leaves = [f"{leaf}{end}" for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    slices = [
        Slice(_dotted(name, leaf), 0, rows, WRITER)
        for leaf in leaves
        if layer._parameters.get(leaf) is not None
    ]
    slices.append(Slice(_dotted(name, f"weight_hh{end}"), 1, column, READER))
    if level + 1 < layer.num_layers:
        slices += [
            Slice(_dotted(name, f"weight_ih{after}"), 1, column + direction * hidden, READER)
            for after in ends[level + 1]
        ]
    # One hidden size for all layers and directions, so one set of them counts it down.
    first = level == 0 and direction == 0
    return slices, [Width(name, "hidden_size", 1)] if first else []


def input_slices(
    name: str, layer: nn.RNNBase, index: Int[Tensor, "groups size"]
) -> tuple[list[Slice], list[Width]]:
    """Return the columns that read the layer's input."""
    slices = [
        Slice(_dotted(name, f"weight_ih{end}"), 1, index, READER) for end in suffixes(layer)[0]
    ]
    return slices, [Width(name, "input_size", index.shape[1])]


def _layers(module: nn.Module) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the label and the parameters of each layer and direction."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if isinstance(module, nn.RNNBase):
        for end in (end for level in suffixes(module) for end in level):
            yield end[1:], [kind + end for kind in kinds]
    elif isinstance(module, nn.RNNCellBase):
        yield "", kinds


def _rows(name: str, leaf: str, parameter: nn.Parameter, module: nn.Module) -> Piece:
    hidden = int(module.hidden_size)  # type: ignore[arg-type]: nn.Module may hold anything
    gates = parameter.shape[0] // hidden
    view = along(parameter.shape, 0, hidden, outer=gates).in_memory_order(parameter)
    return Piece(clean_name(_dotted(name, leaf)), parameter, view)


def _dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)
