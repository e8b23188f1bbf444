"""Layers of low rank, each written as two thin ones."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from regkit.ops.low_rank import singular_values
from regkit.pruning.latency import latency
from regkit.structure.replica import fixed_seed, outputs, told

# Exactly these: a subclass may do more with its weight, as attention does with its projections.
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Singular values below, relative to the largest, are rounding: float32 leaves 1e-7 of a zero.
ZERO = 1e-6

BUDGET_S = 0.5  # for the times of a layer and of its pair


def split_low_rank(
    model: nn.Module, example: Any, timed: bool = True
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Replace layers whose weight, seen as (out, all the rest), has a low rank by two thin ones.

    In place; outputs stay equal up to rounding. Replaced is what then computes less and, measured
    on the layer's own input in the example, takes less time.

    timed: False leaves out the measurement.
    Returns: (rank, full rank) by the name of each layer that was replaced, and notes on those that
        were not, though they have a low rank.
    """
    found = {name: layer for name, layer in _layers(model) if _pays(layer)}
    inputs = _inputs(model, example, found) if found else {}
    ranks, notes = {}, []
    for name, layer in found.items():
        if name not in inputs:
            continue  # never run on the example: nothing could be compared
        rank = weight_rank(layer.weight)
        pair = _filled(layer, rank)
        if timed and not _faster(layer, pair, inputs[name]):
            notes.append(f"{name} has rank {rank} and is no faster as two layers")
            continue
        model.set_submodule(name, pair)
        try:
            with torch.no_grad(), fixed_seed(model):
                outputs(model, example)
        except Exception as error:  # whatever a model may raise that reads the layer's own weight
            model.set_submodule(name, layer)
            notes.append(f"{name} has rank {rank} and stays one layer ({told(error)})")
            continue
        ranks[name] = rank, min(layer.weight.shape[0], layer.weight[0].numel())
    return ranks, notes


def weight_rank(weight: Tensor) -> int:
    """Return how many singular values of a weight, as (out, all the rest), are not zero.

    Those within rounding of zero are zero; of a matrix of zeros one is left.
    """
    values = singular_values(weight.detach().float().flatten(1))
    return max(1, int((values > ZERO * values.max()).sum()))


def pair_of(layer: Layer, rank: int) -> nn.Sequential:
    """Make two layers of a rank in place of one, not filled: what mixes inputs, what outputs.

    The second is pointwise; the bias is its own.
    """
    where: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    biased = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **where)
        second: nn.Module = nn.Linear(rank, layer.out_features, bias=biased, **where)
    else:
        shape = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        options = {key: getattr(layer, key) for key in shape}
        made: Any = type(layer)
        first = made(layer.in_channels, rank, bias=False, **options, **where)
        second = made(rank, layer.out_channels, 1, bias=biased, **where)
    return nn.Sequential(first, second).train(layer.training)


def _layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield what may be replaced: layers in one place each, with a weight of their own."""
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    for name, layer in model.named_modules():
        alone = places[id(layer)] == 1 and all(owners[id(p)] == 1 for p in layer.parameters())
        if name and type(layer) in LAYERS and alone and getattr(layer, "groups", 1) == 1:
            yield name, cast(Layer, layer)


def _pays(layer: Layer) -> bool:
    matrix = layer.weight.detach().flatten(1)
    rank, (out, rest) = weight_rank(matrix), matrix.shape
    # Filters and inputs that are zero, and stay for a reason, make no low rank.
    alive = min(int(matrix.any(axis).sum()) for axis in (0, 1))
    return rank < alive and rank * (out + rest) < out * rest


def _filled(layer: Layer, rank: int) -> nn.Sequential:
    pair = pair_of(layer, rank)
    matrix = layer.weight.detach().double().flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    with torch.no_grad():
        for part, filling in ((0, root[:, None] * right[:rank]), (1, left[:, :rank] * root)):
            weight = cast(Layer, pair[part]).weight
            weight.copy_(filling.view_as(weight))
        if layer.bias is not None:
            cast(Tensor, pair[1].bias).copy_(layer.bias)
    return pair


def _inputs(model: nn.Module, example: Any, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the first input of each layer in a run on the example."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.setdefault(name, args[0])

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), fixed_seed(model):
            outputs(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _faster(layer: nn.Module, pair: nn.Module, x: Tensor) -> bool:
    times = latency({"layer": layer, "pair": pair}, x, BUDGET_S)
    return times["pair"].median < times["layer"].median
