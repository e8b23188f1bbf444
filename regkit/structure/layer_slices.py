"""What a layer loses with an output channel, and with an input channel."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regkit.structure.channels import BUFFER, READER, WRITER, LayerSlices, Slice, Width
from regkit.structure.recurrent import input_slices
from regkit.structure.selectors import NORMS

# Sides of a layer on which channels lie; where a layer hands each channel through, it is one.
OUT, IN, BOTH = "out", "in", "both"


@dataclass(frozen=True)
class Cells:
    """Tensors (leaf name, axis) and numbers of a module that shrink with one of its sides."""

    tensors: tuple[tuple[str, int], ...]
    widths: tuple[str, ...]
    buffers: tuple[str, ...] = ()


def layer_slices(
    name: str, module: nn.Module, side: str, index: Int[Tensor, "groups size"]
) -> LayerSlices | str:
    """Return what the channels hold of one layer, or why it cannot be cut."""
    if isinstance(module, nn.RNNBase):
        if side == IN:
            return input_slices(name, module, index)
        return f"passes {name}, a recurrent layer with projections"
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return [], []
    cells = _cells(name, module, side)
    if isinstance(cells, str):
        return cells
    role = READER if side == IN else WRITER
    slices = [Slice(f"{name}.{leaf}", axis, index, role) for leaf, axis in cells.tensors]
    slices += [Slice(f"{name}.{leaf}", 0, index, BUFFER) for leaf in cells.buffers]
    for s in slices:
        leaf = s.tensor.removeprefix(f"{name}.")
        held = module._parameters.get(leaf, module._buffers.get(leaf))
        if held is None:
            return f"passes {name}, whose {leaf} is computed from other parameters"
        if int(index.max()) >= held.shape[s.axis]:
            return f"passes {name}, which has fewer channels than what leads to it"
    return slices, [Width(name, attribute, index.shape[1]) for attribute in cells.widths]


def crosses(name: str, module: nn.Module) -> str | None:
    """Return why channels cannot go that pass a norm over all of them; None for other modules."""
    if not isinstance(module, NORMS) or isinstance(module, _NormBase):
        return None
    return (
        f"passes {name}, a {type(module).__name__}: its statistics run over the channels, so that "
        "without one the others change"
    )


def bare_slices(
    name: str, parameter: nn.Parameter, index: Int[Tensor, "groups size"]
) -> LayerSlices | str:
    """Return what the channels hold of a parameter that no known layer owns.

    Its last axis of more than one entry counts the channels, as the tracer takes it.
    """
    axes = [axis for axis, size in enumerate(parameter.shape) if size > 1]
    if not axes or int(index.max()) >= parameter.shape[axes[-1]]:
        return f"passes {name}, which has another number of channels"
    return [Slice(name, axes[-1], index, WRITER)], []


def _cells(name: str, module: nn.Module, side: str) -> Cells | str:
    if isinstance(module, _ConvNd):
        return _convolution(name, module, side)
    if isinstance(module, nn.Linear):
        if side == IN:
            return Cells((("weight", 1),), ("in_features",))
        return Cells(_weight_and_bias(module), ("out_features",))
    if isinstance(module, _NormBase):
        buffers = [leaf for leaf in ("running_mean", "running_var") if _has(module, leaf)]
        return Cells(_weight_and_bias(module), ("num_features",), tuple(buffers))
    if isinstance(module, nn.PReLU):
        return Cells((("weight", 0),), ("num_parameters",))
    if isinstance(module, nn.Embedding):
        return Cells((("weight", 1),), ("embedding_dim",))
    return f"passes {name}, a {type(module).__name__}, which is not cut"


def _convolution(name: str, module: _ConvNd, side: str) -> Cells | str:
    transposed = isinstance(module, _ConvTransposeNd)
    if module.groups == 1:
        if side == IN:
            return Cells((("weight", 0 if transposed else 1),), ("in_channels",))
        return Cells(_weight_and_bias(module, 1 if transposed else 0), ("out_channels",))
    if side == BOTH and module.groups == module.in_channels == module.out_channels:
        return Cells(_weight_and_bias(module), ("in_channels", "out_channels", "groups"))
    return f"passes {name}, a grouped convolution"


def _weight_and_bias(module: nn.Module, axis: int = 0) -> tuple[tuple[str, int], ...]:
    present = [(leaf, a) for leaf, a in (("weight", axis), ("bias", 0)) if _has(module, leaf)]
    return tuple(present)


def _has(module: nn.Module, leaf: str) -> bool:
    return isinstance(getattr(module, leaf, None), torch.Tensor)
