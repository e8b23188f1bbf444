"""Which channels are one and the same, by torch-pruning's graph of one run."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch_pruning as tp
from jaxtyping import Int
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import Node

from regkit.structure.layer_slices import BOTH, IN, OUT
from regkit.structure.opaque import make_opaque, opaque_pruners
from regkit.structure.replica import fixed_seed, outputs


@dataclass(frozen=True)
class Side:
    """The output, input or both sides of a layer; of a bare parameter, its channels."""

    name: str
    side: str


@dataclass(frozen=True, eq=False)
class TracedGroup:
    """Channels that lie in the same places of the same layers.

    index: the places of channel g on each side are index[side][g].
    why: the reason not to touch them, when the graph gives one.
    """

    index: dict[Side, Int[Tensor, "groups size"]]
    why: str | None


_Handler = Callable[..., Any]
_Op = tuple[Node, _Handler]
_Place = tuple[int, int]


def trace(model: nn.Module, example: Any) -> list[TracedGroup]:
    """Run a replica, which is spent afterwards, and return its channels.

    What the graph says is a proposal: operations that it does not know count as elementwise.
    """
    model.requires_grad_(True)
    _take_out_metrics(model)
    sealed = make_opaque(model)
    with torch.enable_grad(), fixed_seed(model):
        graph = tp.DependencyGraph().build_dependency(
            model,
            example,
            forward_fn=cast(Any, outputs),
            output_transform=lambda found: [o for o in found if o.grad_fn is not None],
            customized_pruners=opaque_pruners(sealed),
            verbose=False,
        )
    found = _Closure(graph).found()
    for node in graph.module2node.values():
        node.__dict__.clear()  # Nodes point at each other and keep all activations alive.
    return found


def _take_out_metrics(model: nn.Module) -> None:
    """Replace modules that answer == by something else than yes or no, such as torchmetrics'.

    The graph compares modules, and would take all of them for one of these.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__eq__ is not object.__eq__:
                parent._modules[name] = nn.Identity()


class _Closure:
    """All places of a channel, from the links between neighbouring operations.

    Operations whose channels are numbered alike form one space, so that a place is a space and a
    number in it; links that renumber (concatenation, flattening) join places of two spaces.
    """

    def __init__(self, graph: tp.DependencyGraph) -> None:
        self._graph = graph
        self._ops = [op for node in graph.module2node.values() for op in _sides(graph, node)]
        self._space = self._number_spaces()
        self._known: dict[int, set[int]] = defaultdict(set)
        self._parent: dict[_Place, _Place] = {}
        self._broken: dict[_Place, str] = {}
        self._sizes = self._size_spaces()
        self._link()

    def found(self) -> list[TracedGroup]:
        """Return the channels, alike ones together, in the order of the layers that write them."""
        channels: dict[_Place, list[_Place]] = defaultdict(list)
        for space in sorted(self._known):
            for number in sorted(self._known[space]):
                channels[self._root((space, number))].append((space, number))
        broken = {self._root(place): why for place, why in self._broken.items()}
        alike: dict[Any, list[list[_Place]]] = defaultdict(list)
        for root, members in channels.items():
            alike[(self._signature(members), broken.get(root))].append(members)
        members_of: dict[int, list[_Op]] = defaultdict(list)
        for op, space in zip(self._ops, self._space, strict=True):
            members_of[space].append(op)
        return [self._one(sets, why, members_of) for (_, why), sets in alike.items()]

    def _one(
        self, sets: list[list[_Place]], why: str | None, members_of: dict[int, list[_Op]]
    ) -> TracedGroup:
        index: dict[Side, Tensor] = {}
        for space in sorted({space for space, _ in sets[0]}):
            table = torch.tensor([[n for s, n in members if s == space] for members in sets])
            for op in members_of[space]:
                if op[0].type == ops.OPTYPE.OUTPUT:
                    why = why or "is an output of the network"
                if (side := self._side(op)) is not None:
                    index[side] = table
        return TracedGroup(index, why)

    def _signature(self, members: list[_Place]) -> tuple[Any, ...]:
        """Return what alike channels have in common: spaces, how often, and directions."""
        counts: dict[int, int] = defaultdict(int)
        for space, _ in members:
            counts[space] += 1
        directions = [
            (space, number // self._recurrent[space])
            for space, number in members
            if space in self._recurrent
        ]
        return (*sorted(counts.items()), *directions)

    def _number_spaces(self) -> list[int]:
        """Give operations that hand channels on in unchanged order one number."""
        numbers = {op: place for place, op in enumerate(self._ops)}
        parent = list(range(len(self._ops)))

        def root(place: int) -> int:
            while parent[place] != place:
                parent[place] = place = parent[parent[place]]
            return place

        for op, other, maps in self._links():
            if not maps:
                a, b = sorted((root(numbers[op]), root(numbers[other])))
                parent[b] = a
        return [root(place) for place in range(len(self._ops))]

    def _links(self) -> Iterable[tuple[_Op, _Op, list[Any]]]:
        for node, handler in self._ops:
            for dep in node.dependencies:
                if dep.is_triggered_by(handler):
                    maps = [m for m in dep.index_mapping if m is not None]
                    yield (node, handler), (dep.target, dep.handler), maps

    def _size_spaces(self) -> dict[int, int]:
        """Return the number of channels of each space; one with two numbers is broken."""
        sizes: dict[int, int] = {}
        self._recurrent: dict[int, int] = {}
        for (node, handler), space in zip(self._ops, self._space, strict=True):
            size = self._width(node, handler)
            if size is None:
                continue
            if sizes.setdefault(space, size) != size:
                self._broken[(space, 0)] = "passes a reshape that was not understood"
                sizes[space] = max(sizes[space], size)
            if isinstance(node.module, nn.RNNBase) and self._name_side(node, handler) == OUT:
                self._recurrent[space] = node.module.hidden_size
        for space, why in [(place[0], why) for place, why in self._broken.items()]:
            self._broken |= {(space, number): why for number in range(sizes[space])}
        return sizes

    def _link(self) -> None:
        """Join the places that the links between spaces name, until no new place turns up."""
        space_of = dict(zip(self._ops, self._space, strict=True))
        links: dict[int, list[tuple[list[Any], int]]] = defaultdict(list)
        for op, other, maps in self._links():
            if maps:
                links[space_of[op]].append((maps, space_of[other]))
        todo = [(space, list(range(size))) for space, size in self._sizes.items()]
        for space, numbers in todo:
            self._known[space].update(numbers)
        while todo:
            space, numbers = todo.pop()
            for maps, other in links[space]:
                new = self._follow(space, numbers, maps, other)
                if new:
                    todo.append((other, new))

    def _follow(self, space: int, numbers: list[int], maps: list[Any], other: int) -> list[int]:
        mapped = [_HybridIndex(idx=n, root_idx=n) for n in numbers]
        for renumber in maps:
            mapped = renumber(mapped)
        new = []
        for number, source in mapped:
            if source is None or not 0 <= number < self._sizes.get(other, number + 1):
                self._broken |= {(space, n): "passes a renumbering that was lost" for n in numbers}
                continue
            if number not in self._known[other]:
                self._known[other].add(number)
                new.append(number)
            a, b = sorted((self._root((space, source)), self._root((other, number))))
            self._parent[b] = a
        return new

    def _root(self, place: _Place) -> _Place:
        while (above := self._parent.get(place, place)) != place:
            self._parent[place] = self._parent.get(above, above)
            place = above
        return place

    def _width(self, node: Node, handler: _Handler) -> int | None:
        if self._name_side(node, handler) is None:
            return None
        outward = handler == _ends(self._graph, node)[0]
        get = self._graph.get_out_channels if outward else self._graph.get_in_channels
        return get(node)

    def _side(self, op: _Op) -> Side | None:
        node, handler = op
        side = self._name_side(node, handler)
        if side is None:
            return None
        if isinstance(node.module, nn.Parameter):
            return Side(self._graph._param_to_name[node.module], side)
        return Side(self._graph._module2name[node.module], side)

    def _name_side(self, node: Node, handler: _Handler) -> str | None:
        """Return the side of a layer or parameter; None for other operations."""
        if node.module not in self._graph._module2name:
            return None
        out, into = _ends(self._graph, node)
        if out == into:
            return BOTH
        return OUT if handler == out else IN


def _sides(graph: tp.DependencyGraph, node: Node) -> list[_Op]:
    out, into = _ends(graph, node)
    return [(node, out)] if out == into else [(node, out), (node, into)]


def _ends(graph: tp.DependencyGraph, node: Node) -> tuple[_Handler, _Handler]:
    """Return what the graph knows the outputs and the inputs of an operation by."""
    pruner: Any = graph.get_pruner_of_module(node.module)
    return pruner.prune_out_channels, pruner.prune_in_channels
