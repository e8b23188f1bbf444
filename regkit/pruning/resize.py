"""Save a smaller model, and give another of its class its sizes, so that the weights load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.files import replacing
from regkit.pruning.low_rank import LAYERS, Layer, pair_of
from regkit.structure.replica import unwrapped

Model = TypeVar("Model", bound=nn.Module)
Size = int | tuple[int, ...]
RANK = "rank"


def save_shrunk(small: nn.Module, path: str | Path, model: nn.Module) -> None:
    """Write the weights of a model that `shrink` made, and in which numbers it differs.

    The file holds tensors and numbers alone: `torch.load(path, weights_only=True)` opens it.

    small: what `shrink` returned. path: of the file.
    model: the whole one that it was made of, or another of its class and options.
    """
    content = {"sizes": sizes(unwrapped(model), small), "state_dict": small.state_dict()}
    with replacing(Path(path)) as draft:
        torch.save(content, draft)


def load_shrunk(model: Model, path: str | Path) -> Model:
    """Make of a new model, in place, the smaller one that `save_shrunk` wrote, and return it.

    model: of the class and options of the one that was shrunk, whatever its weights.
    path: of the file.
    Raises: InputError when the file is none of `save_shrunk`, or of another model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        numbers, state = content["sizes"], content["state_dict"]
    except Exception as error:
        raise InputError(
            f"load_shrunk got {path}, which is no file of save_shrunk ({type(error).__name__})."
        ) from error
    restore(model, state, numbers)
    return model


def sizes(model: nn.Module, smaller: nn.Module) -> dict[str, Size]:
    """Return the numbers and shapes that modules of the smaller model hold otherwise, by name.

    {"layer1.0.out_channels": 12, "norm.normalized_shape": (48,), "head.rank": 5, ...}; with them
    and a state_dict `restore` makes the smaller model of a new one. A rank is that of a layer that
    became two.
    """
    changed: dict[str, Size] = {}
    for name, module in model.named_modules():
        other = smaller.get_submodule(name)
        if type(module) in LAYERS and type(other) is nn.Sequential:
            changed[f"{name}.{RANK}"] = cast(Layer, other[0]).weight.shape[0]
            continue
        for key, value in vars(module).items():
            new: Any = vars(other).get(key)
            if _is_size(value) and _is_size(new) and value != new:
                changed[f"{name}.{key}" if name else key] = new
    return changed


def _is_size(value: object) -> bool:
    """Whether it is a whole number, or a tuple of them, as of a norm that spans several axes."""
    return type(value) is int or (isinstance(value, tuple) and all(type(v) is int for v in value))


def restore(model: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[str, Size]) -> None:
    """Make a model smaller, in place, and fill it: what `shrink` made of its like comes back.

    state: the state_dict of the smaller model; biases that the model lacks are added.
    sizes: of the smaller model, from `sizes`.
    Raises: InputError when they belong to another model.
    """
    for name, value in sizes.items():
        owner, _, attribute = name.rpartition(".")
        module = _owner(model, owner, name)
        if attribute == RANK and type(module) in LAYERS:
            model.set_submodule(owner, pair_of(cast(Layer, module), cast(int, value)))
            continue
        if not _is_size(getattr(module, attribute, None)):
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
