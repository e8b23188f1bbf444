"""The numbers that layers keep of their channels: they fall when channels go."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regkit.structure.channels import Width


def widths(name: str, module: nn.Module, leaf: str, axis: int, per: int) -> list[Width]:
    """Return what a layer counts down when its tensor `leaf` loses `per` places along an axis."""
    found: tuple[tuple[str, int], ...] = ()
    if isinstance(module, _ConvNd) and leaf == "weight":
        found = _convolution(module, axis, per)
    elif isinstance(module, nn.Linear) and leaf == "weight":
        found = (("in_features" if axis else "out_features", per),)
    elif isinstance(module, _NormBase) and leaf == _first(module):
        found = (("num_features", per),)
    elif isinstance(module, nn.PReLU):
        found = (("num_parameters", per),)
    elif isinstance(module, nn.Embedding) and axis == 1:
        found = (("embedding_dim", per),)
    elif isinstance(module, nn.RNNCellBase) and leaf == "weight_ih" and axis == 0:
        found = (("hidden_size", 1),)  # a row for each gate
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase) and leaf in ("weight_ih", "weight_ih_l0"):
        found = (("input_size", per),)
    return [Width(name, attribute, fewer) for attribute, fewer in found]


def _convolution(module: _ConvNd, axis: int, per: int) -> tuple[tuple[str, int], ...]:
    if axis > 1:
        return ()
    into = isinstance(module, _ConvTransposeNd) == (axis == 0)
    if module.groups > 1 and module.groups == module.in_channels:  # a group goes whole
        groups = per * module.groups // module.weight.shape[0]
        out = groups * module.out_channels // module.groups
        return (("in_channels", groups), ("groups", groups), ("out_channels", out))
    # Axis 1 has the channels of one group.
    all_groups = per * (module.groups if axis == 1 else 1)
    return (("in_channels" if into else "out_channels", all_groups),)


def _first(module: nn.Module) -> str:
    return "weight" if isinstance(module.weight, nn.Parameter) else "running_mean"
