"""The layers that a model ends with: their rows are classes, and no groups like others."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from regkit.errors import InputError
from regkit.structure.replica import fixed_seed, outputs, replica, unwrapped
from regkit.structure.selectors import clean_name

# What the last module of a classifier is called where nothing else tells.
NAMES = frozenset({"head", "heads", "classifier", "fc", "logits", "lm_head", "output"})
# Backward nodes, as their names begin: of weights that are only turned or cast, and of layers with
# weights; behind the first of these on the way back from an output, layers are hidden.
SAME = ("T", "Permute", "View", "ToCopy")
WEIGHTED = ("Addmm", "Mm", "Bmm", "Convolution", "Linear", "Baddbmm", "Addbmm", "MkldnnConvolution")


def output_parameters(model: nn.Module, example: Any = None) -> set[nn.Parameter]:
    """Return the parameters of the layers whose outputs the model returns.

    With an example a copy of the model runs on it, and the way back from its outputs is followed to
    the first layers with weights. Without one, or where that fails, it is a guess: the linear layer
    or convolution that is registered last, and those that are called like a classifier's last one.
    """
    inner = unwrapped(model)
    if example is not None:
        try:
            found = _traced(inner, example)
        except (InputError, RuntimeError, TypeError, ValueError):  # says more where it is asked for
            found = set()
        if found:
            return found
    layers = {n: m for n, m in inner.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    return {p for m in _ends(layers) for p in m.parameters()}


def _ends(layers: Mapping[str, nn.Module]) -> list[nn.Module]:
    """Return the last of all layers, and the last within each that is called like a classifier."""
    ends = dict.fromkeys([""], list(layers.values())[-1]) if layers else {}
    for name, module in layers.items():
        parts = name.split(".")
        place = next((k for k, part in enumerate(parts) if part in NAMES), None)
        if place is not None:
            ends[".".join(parts[: place + 1])] = module
    return list(ends.values())


def _traced(model: nn.Module, example: Any) -> set[nn.Parameter]:
    names = {clean_name(name): p for name, p in model.named_parameters()}
    copy = replica(model)
    for p in copy.parameters():
        p.requires_grad_(True)
    own = {id(p): clean_name(name) for name, p in copy.named_parameters()}
    with torch.enable_grad(), fixed_seed(copy):
        ends = [o.grad_fn for o in outputs(copy, example) if o.grad_fn is not None]
    found: set[nn.Parameter] = set()
    seen: set[Any] = set()
    while ends:
        node = ends.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith(WEIGHTED):
            found |= {names[n] for n in _leaves(node, own) if n in names}
        else:
            ends += [following for following, _ in node.next_functions]
    return found


def _leaves(node: Any, own: dict[int, str]) -> Iterator[str]:
    """Yield the parameters that go into a node, through transpositions and casts at most."""
    for following, _ in node.next_functions:
        leaf = getattr(following, "variable", None)
        if leaf is not None and id(leaf) in own:
            yield own[id(leaf)]
        elif following is not None and following.name().startswith(
            ("T", "Permute", "View", "ToCopy")
        ):
            yield from _leaves(following, own)
