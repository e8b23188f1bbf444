"""Give a model the sizes of a smaller one, so that weights of that one load into it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regkit.errors import InputError


def sizes(model: nn.Module, smaller: nn.Module) -> dict[str, int]:
    """Return the whole numbers that modules of the smaller model hold otherwise, by their name.

    {"layer1.0.out_channels": 12, ...}; with them and a state_dict `restore` makes the smaller model
    of a new one.
    """
    changed = {}
    for name, module in model.named_modules():
        other = smaller.get_submodule(name)
        for key, value in vars(module).items():
            new = vars(other).get(key)
            if type(value) is int and type(new) is int and value != new:
                changed[f"{name}.{key}" if name else key] = new
    return changed


def restore(model: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    """Make a model smaller, in place, and fill it: what `shrink` made of its like comes back.

    state: the state_dict of the smaller model; biases that the model lacks are added.
    sizes: of the smaller model, from `sizes`.
    Raises: InputError when they belong to another model.
    """
    for name, value in sizes.items():
        owner, _, attribute = name.rpartition(".")
        module = _owner(model, owner, name)
        if type(getattr(module, attribute, None)) is not int:
            raise InputError(
                f"restore got the size {name}, and {type(module).__name__} has no such number. "
                "Give a model like the one that was made smaller."
            )
        setattr(module, attribute, value)
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        module = _owner(model, owner, name)
        held = getattr(module, leaf, None)
        if isinstance(held, Tensor) and (held.shape == tensor.shape or not sizes):
            continue  # whole models have to fit as they are
        if leaf in module._buffers:
            module._buffers[leaf] = torch.empty_like(tensor)
        elif leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(torch.empty_like(tensor))
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(
            f"restore got weights that do not fit {type(model).__name__} ({first}). "
            "Give a model like the one that was made smaller."
        ) from error
    _check(model)


def _check(model: nn.Module) -> None:
    """Refuse weights that contradict the numbers of their layers; put recurrent ones in a row."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
        told = (getattr(module, "out_features", None), getattr(module, "in_features", None))
        if isinstance(module, nn.Linear) and module.weight.shape != told:
            raise InputError(
                f"restore got weights of {tuple(module.weight.shape)} for {name}, which is {told}. "
                "Give a model like the one that was made smaller, of as many classes."
            )


def _owner(model: nn.Module, owner: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(owner)
    except AttributeError as error:
        raise InputError(
            f"restore got {name}, and {type(model).__name__} has no module {owner}. "
            "Give a model like the one that was made smaller."
        ) from error
