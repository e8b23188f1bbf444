"""A copy of a model that can be run, cut and overwritten while the user's own stays as it is."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from regkit.errors import InputError

# Hooks belong to others, may hold what they caught, and must not see the runs of a copy.
_HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")

# What transformers notes of hooks of its own, which it sets again where the note is missing.
_NOTE_OF_HOOKS = "_output_capturing_hooks_installed"

# What Fabric hangs on a module; the trainer stays behind by itself.
_ATTACHED = ("_fabric",)

# Frames and sides of pictures that examples are cut to, where a net runs the same on these.
_SMALLER = ((4, 32), (10**9, 32), (10**9, 64))


class _Clamped:
    """An average pool that is no larger than its input."""

    def forward(self: Any, input: Tensor) -> Tensor:
        given, axes = self.kernel_size, type(self)._axes
        sizes = given if isinstance(given, tuple | list) else (given,) * axes
        kept = [min(size, n) for size, n in zip(sizes, input.shape[-axes:], strict=True)]
        if kept == list(sizes):
            return super().forward(input)  # pyright: ignore[reportAttributeAccessIssue]: of the pool
        return _AVERAGES[axes](input, kept)


class _AvgPool2d(_Clamped, nn.AvgPool2d):
    _axes = 2


class _AvgPool3d(_Clamped, nn.AvgPool3d):
    _axes = 3


_POOLS = {nn.AvgPool2d: _AvgPool2d, nn.AvgPool3d: _AvgPool3d}
_AVERAGES = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network within `torch.compile`, DDP and DataParallel."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def replica(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode, uncompiled, without hooks on outputs and gradients.

    Raises: InputError when the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in _ATTACHED:
            if (attached := module.__dict__.get(name)) is not None:
                memo[id(attached)] = None
        for name in _HOOKS:
            memo[id(module.__dict__[name])] = OrderedDict()
    try:
        copy = deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} could not be copied ({told(error)}); its channels are found "
            "on a copy. Give the nn.Module that copy.deepcopy takes, such as the network within."
        ) from error
    _uncompile(copy)
    for module in copy.modules():
        module.__dict__.pop(_NOTE_OF_HOOKS, None)
    return copy.eval()


def call(model: Callable[..., Any], example: Any) -> Any:
    """Run the model on a tensor, on a list or tuple of arguments, or on a dict of named ones."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Return the tensors among what the model returns; it may overwrite its input, a copy."""
    return [leaf for leaf in tree_leaves(call(model, copied(example))) if isinstance(leaf, Tensor)]


def copied(example: Any) -> Any:
    """Return an example of the same values in containers and tensors of its own."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, example)


def take_small_inputs(copy: nn.Module) -> None:
    """Have the average pools of a copy take what is smaller than they are, as a whole."""
    for module in copy.modules():
        if type(module) in _POOLS:
            module.__class__ = _POOLS[type(module)]


def cut_examples(example: Any) -> Iterator[Any]:
    """Yield the example with fewer frames and smaller pictures, and with smaller pictures alone."""
    for frames, side in _SMALLER:
        cut = tree_map(lambda x, most=(frames, side): _cut(x, *most), example)
        before, after = _num_entries(example), _num_entries(cut)
        if 2 * after <= before:
            yield cut


def _cut(leaf: Any, frames: int, side: int) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.ndim < 4:
        return leaf
    leaf = leaf[..., :side, :side]
    return (leaf[:, :, :frames] if leaf.ndim == 5 else leaf).clone()


def _num_entries(example: Any) -> int:
    return sum(x.numel() for x in tree_leaves(example) if isinstance(x, Tensor))


def check_runs(model: nn.Module, example: Any, asker: str) -> None:
    """Run once.

    Raises: InputError, with the model's own error, when it does not run or returns no tensor.
    """
    shapes = tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x, example)
    who = f"{asker} ran {type(model).__name__} on an example of shape {shapes}"
    advice = "Give example=<one input as in training, batch of 1>, on the model's device."
    try:
        with torch.no_grad(), fixed_seed(model):
            found = outputs(model, example)
    except Exception as error:
        raise InputError(f"{who}, and it failed: {told(error)}. {advice}") from error
    if not any(o.is_floating_point() for o in found):
        raise InputError(f"{who}, and it returned no tensor of floating point numbers. {advice}")


@contextmanager
def fixed_seed(model: nn.Module) -> Iterator[None]:
    """Draw the same random numbers each time, and leave the global generators as they were."""
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        torch.manual_seed(0)
        yield


def told(error: Exception) -> str:
    """Return an error in one line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first[:200]}"


def _uncompile(module: nn.Module) -> None:
    """Put what `torch.compile` wrapped into its place again."""
    module._compiled_call_impl = None
    for name, child in module.named_children():
        inner = child._modules.get("_orig_mod")
        if isinstance(inner, nn.Module):
            setattr(module, name, child := inner)
        _uncompile(child)
