"""Which channels are one and the same, by the labels that follow one run of the model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regkit.structure.labels import Axis, Channels, Facet, Labels, compact
from regkit.structure.opaque import make_opaque
from regkit.structure.operations import Call, follow, replayed
from regkit.structure.replica import copied, fixed_seed, outputs


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


def trace(model: nn.Module, example: Any) -> list[TracedGroup]:
    """Run a replica, which is spent afterwards, and return its channels.

    What is found is a proposal: operations that are not known count as ones on single entries.
    """
    channels = Channels()
    follower = _Follower(channels)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_floating_point():
            follower.label(name, tensor)
    make_opaque(model, follower)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # Whole layers would be one operation.
    example = copied(example)
    for x in tree_leaves(example):
        if isinstance(x, Tensor):
            follower.labels[x] = Labels(data=True)
    try:
        with torch.no_grad(), fixed_seed(model), follower:
            found = outputs(model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for x in found:
        channels.refuse(follower.labels_of(x).facets, "is an output of the network")
    return _grouped(channels)


class _Follower(TorchDispatchMode):
    """Keep the labels of all tensors while a model runs."""

    def __init__(self, channels: Channels) -> None:
        super().__init__()
        self.channels = channels
        self.labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
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
        return self.labels.get(x, Labels()) if isinstance(x, Tensor) else Labels()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, and have the labels follow it."""
        made = func(*args, **(kwargs or {}))
        if not self.resting:
            outs = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
            name = func._schema.name.partition("::")[2]
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
        return self._names.get(x, "") if isinstance(x, Tensor) else ""


def _grouped(channels: Channels) -> list[TracedGroup]:
    """Return the channels, alike ones together, in the order of the weights that hold them."""
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
    is_read = {axis for axis, first in channels.first.items() if bool(reads[first : first + channels.sizes[axis]].any())}
    return [
        TracedGroup(
            {axis: torch.tensor([held[axis] for held in sets]) for axis in sets[0]},
            frozenset(axis for axis in sets[0] if axis in is_read),
            head,
            reason,
        )
        for (_, head, reason), sets in alike.items()
    ]
