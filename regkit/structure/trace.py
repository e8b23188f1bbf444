"""Which channels are one and the same, by the labels that follow one run of the model."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regkit.structure.labels import Axis, Facet, Labels, LabelStore, compact
from regkit.structure.opaque import opaque
from regkit.structure.operations import Call, follow, replayed
from regkit.structure.replica import call, copied, fixed_seed


@dataclass(frozen=True, eq=False)
class TracedGroup:
    """Channels that lie in the same places of the same tensors.

    index: the places of channel g along each axis are index[axis][g].
    reads: those of the axes that take the channels in; the others make them.
    head: whether they are what attention takes together as one head.
    why: the reason not to touch them, when the run gives one.
    """

    index: dict[Axis, Int[Tensor, "groups size"]]
    reads: frozenset[Axis]
    head: bool = False
    why: str | None = None


@dataclass(frozen=True, eq=False)
class Traced:
    """What one run says of the channels.

    operations: by name, in the order of the run in eval mode.
    """

    channels: LabelStore
    operations: tuple[str, ...]

    def agrees(self, other: "Traced") -> bool:
        """Say whether another run did the same and found the very same channels."""
        return self.operations == other.operations and self.channels.agrees(other.channels)

    def groups(self) -> list[TracedGroup]:
        """Return the channels, alike ones together, in the order of the weights that hold them."""
        return _grouped(self.channels)


def trace(model: nn.Module, example: Any) -> Traced:
    """Run a replica and find its channels; layers that run in training alone count too.

    What is found is a proposal: operations that are not known count as ones on single entries.
    """
    channels = LabelStore()
    follower = _Follower(channels)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            follower.label(name, tensor)
    _follow(follower, model, example)
    operations = tuple(follower.operations)
    if not channels.used() >= {name for name, p in model.named_parameters() if p.numel() > 1}:
        # One clip is too few for some batch norms: then there is no such run.
        with suppress(Exception):
            _follow(follower, model.train(), example)
        model.eval()
    return Traced(channels, operations)


def _follow(follower: "_Follower", model: nn.Module, example: Any) -> None:
    """Run the model, and let labels follow; those of its outputs must stay."""
    example = copied(example)
    for x in tree_leaves(example):
        if isinstance(x, Tensor):
            follower.labels[x] = Labels(data=True)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # Whole layers would be one operation.
    try:
        with torch.no_grad(), fixed_seed(model), opaque(model, follower), follower:
            found = [x for x in tree_leaves(call(model, example)) if isinstance(x, Tensor)]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if not any(x.is_floating_point() for x in found):
        raise ValueError("the model returned no tensor of floating point numbers")
    for x in found:
        follower.channels.refuse(follower.labels_of(x).facets, "is an output of the network")


class _Follower(TorchDispatchMode):
    """Keep the labels of all tensors while a model runs."""

    def __init__(self, channels: LabelStore) -> None:
        super().__init__()
        self.channels = channels
        self.labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.operations: list[str] = []
        self.resting = False
        self._names: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._origin: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def label(self, name: str, tensor: Tensor) -> None:
        """Give a weight a label for each place along each axis."""
        facets = []
        for axis, size in enumerate(tensor.shape):
            if size > 1:
                shape = [size if a == axis else 1 for a in range(tensor.ndim)]
                facets.append(self.channels.new(Axis(name, axis), size).view(shape))
        self.labels[tensor] = Labels(tuple(facets))
        self._names[tensor] = name

    def labels_of(self, x: Any) -> Labels:
        """Return the labels of a tensor, none of a constant."""
        return self.labels.get(x) or Labels() if isinstance(x, Tensor) else Labels()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, and have the labels follow it."""
        made = func(*args, **(kwargs or {}))
        if not self.resting:
            outs = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
            name = func._schema.name.partition("::")[2]
            self.operations.append(name)
            call = Call(name, func, tuple(args), kwargs or {}, outs, self.labels_of, self._name_of)
            self._note(call)
        return made

    def _note(self, call: Call) -> None:
        found = follow(call, self.channels)
        for place, (out, labels) in enumerate(zip(call.outs, found, strict=True)):
            self.labels[out] = labels
            if call.args and out is call.args[0]:
                self._write_through(out, labels)
            elif call.func.is_view:
                # A call that held the view itself would keep it alive.
                shapes = [x.new_empty(x.shape, device="meta") for x in call.outs]
                self._origin[out] = (call.args[0], replace(call, outs=shapes), place)

    def _write_through(self, view: Tensor, labels: Labels) -> None:
        """Label the places of a tensor that an operation wrote through a view of it."""
        while view in self._origin:
            whole, call, place = self._origin[view]
            held = self.labels_of(whole)
            facets: list[Facet] = []
            for at in range(max(len(held.facets), len(labels.facets))):
                full = torch.zeros(whole.shape, dtype=torch.long)
                if at < len(held.facets):
                    full += held.facets[at]
                seen = replayed(call, full, whole.shape)[place]
                seen.copy_(labels.facets[at] if at < len(labels.facets) else torch.zeros(()))
                facets.append(compact(full))
            labels = Labels(tuple(facets), held.data or labels.data)
            self.labels[whole] = labels
            view = whole

    def _name_of(self, x: Any) -> str:
        return self._names.get(x) or "" if isinstance(x, Tensor) else ""


def _grouped(channels: LabelStore) -> list[TracedGroup]:
    root = channels.roots().tolist()
    reads, writes, headed = channels.seen()
    used = {root[label] for label in (reads | writes).nonzero().flatten().tolist()}
    why: dict[int, str] = {}
    for label, reason in channels.refused().items():
        why.setdefault(root[label], reason)
    heads = {root[label] for label in headed.nonzero().flatten().tolist()}
    members: dict[int, dict[Axis, list[int]]] = defaultdict(lambda: defaultdict(list))
    both: dict[int, Axis] = {}
    for axis, first in channels.first.items():
        for place in range(channels.sizes[axis]):
            if root[first + place] in used:
                members[root[first + place]][axis].append(place)
        span = slice(first, first + channels.sizes[axis])
        if bool(reads[span].any() and writes[span].any()):
            both |= {root[label]: axis for label in range(span.start, span.stop)}
    why |= {r: f"passes {axis.tensor}, which both makes and reads it" for r, axis in both.items()}
    alike: dict[Any, list[dict[Axis, list[int]]]] = defaultdict(list)
    for label, held in members.items():
        shape = tuple((axis, len(places)) for axis, places in held.items())
        alike[(shape, label in heads, why.get(label))].append(held)
    is_read = {
        axis
        for axis, first in channels.first.items()
        if bool(reads[first : first + channels.sizes[axis]].any())
    }
    return [
        TracedGroup(
            {axis: torch.tensor([held[axis] for held in sets]) for axis in sets[0]},
            frozenset(axis for axis in sets[0] if axis in is_read),
            head,
            reason,
        )
        for (_, head, reason), sets in alike.items()
    ]
