"""How the labels of channels go through the operations of a network.

An operation that is not named here is taken for one on single entries where the sizes allow it;
else it ends the labels, with the reason. A wrong guess costs channels and never a wrong cut: what
is found is tried out (`verify.py`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from regkit.structure.labels import Facet, Labels, LabelStore, compact, lifted, meets

_OTHERS = "without one the others change"
_NORM = "its statistics run over the channels, so that without one the others change"


@dataclass(frozen=True)
class Call:
    """One operation of ATen: what it was given, what it returned, and the labels of its tensors."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: Sequence[Tensor]
    labels_of: Callable[[Any], Labels]
    name_of: Callable[[Any], str]

    def option(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        for place, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.args[place] if place < len(self.args) else argument.default_value
        return default

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors that it was given."""
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]

    @property
    def data(self) -> bool:
        """Say whether it was given something that depends on the input of the network."""
        return any(self.labels_of(x).data for x in self.tensors)


Facets = list[Facet]
Rule = Callable[[Call, LabelStore], "list[Facets]"]


def follow(call: Call, channels: LabelStore) -> list[Labels]:
    """Return the labels of what the operation returned; note what they say of the channels."""
    rule = _RULES.get(call.name) or _RULES.get(call.name.rstrip("_"), _entrywise)
    if any(call.labels_of(x).facets for x in call.tensors):
        found = rule(call, channels)
    else:
        found = [[] for _ in call.outs]
    return [Labels(tuple(facets), call.data) for facets in found]


def replayed(call: Call, source: Facet, shape: Sequence[int]) -> list[Facet]:
    """Return what the operation makes of labels in the place of its first argument."""

    def moved(x: Any) -> Any:
        return x.cpu() if isinstance(x, Tensor) else x

    name = "reshape" if call.name in ("view", "_unsafe_view") else call.name
    full = source.expand(tuple(shape))
    if name == "reshape":
        return [full.reshape(call.outs[0].shape)]
    if name == "as_strided":
        full = full.contiguous()
    rest = tree_map(moved, call.args[1:])
    return [x for x in tree_leaves(call.func(full, *rest, **call.kwargs)) if isinstance(x, Tensor)]


def _same(call: Call, channels: LabelStore) -> list[Facets]:
    return [list(call.labels_of(call.args[0]).facets)]


def _moved(call: Call, channels: LabelStore) -> list[Facets]:
    """Entries change their places."""
    source = call.args[0]
    found: list[Facets] = [[] for _ in call.outs]
    for facet in call.labels_of(source).facets:
        for place, made in enumerate(replayed(call, facet, source.shape)):
            found[place].append(compact(made))
    return found


def _padded(call: Call, channels: LabelStore) -> list[Facets]:
    source, pad = call.args[0], call.args[1]
    full = (f.expand(source.shape) for f in call.labels_of(source).facets)
    return [[compact(torch.constant_pad_nd(f, pad, 0)) for f in full]]


def _put(call: Call, channels: LabelStore) -> list[Facets]:
    """Write entries into some places of another tensor."""
    target, indices, values = call.args[:3]
    places = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, indices)
    found = []
    none = torch.zeros((), dtype=torch.long)
    held, given = call.labels_of(target).facets, call.labels_of(values).facets
    for old, new in zip_longest(held, given, fillvalue=none):
        whole = old.expand(target.shape).clone(memory_format=torch.contiguous_format)
        found.append(compact(whole.index_put_(tuple(places), new.expand(values.shape))))
    return [found]


def _copied(call: Call, channels: LabelStore) -> list[Facets]:
    target, source = call.args[:2]
    return [[lifted(f, target.ndim) for f in call.labels_of(source).facets]]


def _nothing(call: Call, channels: LabelStore) -> list[Facets]:
    return [[] for _ in call.outs]


def _joined(call: Call, channels: LabelStore) -> list[Facets]:
    """Put tensors side by side along an axis: what differs along others is the same in all."""
    out, axis = call.outs[0], int(call.option("dim", 0)) % call.outs[0].ndim
    across: Facets = []
    parts: list[tuple[Facets, list[int]]] = []
    for x in call.args[0]:
        held = call.labels_of(x)
        facets, shape = list(held.facets), list(x.shape)
        if call.name == "stack":
            facets = [f.unsqueeze(axis) for f in facets]
            shape.insert(axis, 1)
        elif len(shape) < out.ndim:
            continue  # torch passes over tensors that hold nothing
        if call.data and not held.data:
            channels.written(facets)
        alone = [f for f in facets if f.shape[axis] > 1 or not _varies(f.shape)]
        parts.append((alone, shape))
        for f in facets:
            if not any(f is other for other in alone):
                _merge(across, f, channels)
    for place in range(max(len(facets) for facets, _ in parts)):
        none = torch.zeros([1] * out.ndim, dtype=torch.long)
        side_by_side = [
            (facets[place] if place < len(facets) else none).expand(shape)
            for facets, shape in parts
        ]
        _merge(across, compact(torch.cat(side_by_side, axis)), channels)
    return [across]


def _reduced(call: Call, channels: LabelStore) -> list[Facets]:
    """Sum, average or compare along axes, which go."""
    source = call.args[0]
    facets = call.labels_of(source).facets
    given = call.option("dim")
    axes = range(source.ndim) if given is None else [given] if isinstance(given, int) else given
    axes = sorted({a % max(source.ndim, 1) for a in (axes or range(source.ndim))})
    kept: Facets = []
    for f in facets:
        over = [a for a in axes if f.shape[a] > 1]
        if over and all(f.shape[a] == 1 for a in range(f.ndim) if a not in over):
            if call.name in _STATISTICS:
                channels.refuse([f], f"passes a {call.name} over the channels: {_OTHERS}")
            continue
        f = channels.fuse(f, over)
        kept.append(f if call.option("keepdim") else f.squeeze(tuple(axes)))
    return [[f for f in kept if _fits(f, out)] for out in call.outs]


def _softmax(call: Call, channels: LabelStore) -> list[Facets]:
    source, axis = call.args[0], int(call.args[1])
    facets = call.labels_of(source).facets
    channels.refuse(
        [f for f in facets if f.shape[axis] > 1], f"passes a softmax over the channels: {_OTHERS}"
    )
    return [list(facets)]


def _entrywise(call: Call, channels: LabelStore) -> list[Facets]:
    """Entries at one place of all tensors make the entry at that place, as far as sizes agree."""
    out = call.outs[0] if call.outs else None
    if out is None:
        return []
    facets = []
    for x in call.tensors:
        held = call.labels_of(x)
        facets += [(f, held.data) for f in held.facets]
    fitting = [(f, data) for f, data in facets if _fits(f, out)]
    channels.refuse(
        [f for f, _ in facets if not _fits(f, out)], f"passes {call.name}, which is not followed"
    )
    merged = _mixed(fitting, call.data, out.ndim, channels)
    return [[f for f in merged if _fits(f, o)] if o.ndim == out.ndim else [] for o in call.outs]


def _mixed(
    facets: Iterable[tuple[Facet, bool]], data: bool, ndim: int, channels: LabelStore
) -> Facets:
    """Take labels together that meet; of weights, keep what tells channels of the data apart."""
    found: Facets = []
    facets = [(lifted(f, ndim), of_data) for f, of_data in facets]
    for f in (f for f, of_data in facets if of_data):
        _merge(found, f, channels)
    for f in (f for f, of_data in facets if not of_data):
        if not data:
            _merge(found, f, channels, within_weight=True)
        elif any(meets(f, g) for g in found) and not any(_shared(f, g) for g in found):
            channels.written([f])
            _merge(found, f, channels)
    return found


def _shared(weight: Facet, data: Facet) -> bool:
    """Say whether a weight is the same for all heads of the data, and so belongs to none."""
    apart = any(m > 1 and n == 1 for m, n in zip(weight.shape, data.shape, strict=True))
    more = any(m == 1 and n > 1 for m, n in zip(weight.shape, data.shape, strict=True))
    return meets(weight, data) and more and not apart


def _merge(found: Facets, facet: Facet, channels: LabelStore, within_weight: bool = False) -> None:
    """Add a facet, as one with those that tell channels apart along an axis of its own."""
    for place, other in enumerate(found):
        if meets(facet, other):
            channels.unify(facet, other, within_weight)
            del found[place]
            both = compact(torch.where(other > 0, other, facet))
            _merge(found, both, channels, within_weight)
            return
    found.append(facet)


def _channel_norm(call: Call, channels: LabelStore) -> list[Facets]:
    """Batch norm, and group norm: its weights lie along axis 1."""
    source = call.args[0]
    ndim = source.ndim
    held = call.labels_of(source)
    if call.name == "native_group_norm":
        crossing = [f for f in held.facets if f.shape[1] > 1]
        channels.refuse(crossing, f"passes {_who(call, 'GroupNorm')}: {_NORM}")
    elif not held.data and call.option("training"):
        crossing = [f for f in held.facets if _varies([*f.shape[:1], *f.shape[2:]])]
        channels.refuse(crossing, f"is read by weights that are standardised: {_OTHERS}")
    facets = [(f, held.data) for f in held.facets]
    for x in call.tensors[1:]:
        facets += [
            (f.view(1, -1, *[1] * (ndim - 2)), call.labels_of(x).data)
            for f in call.labels_of(x).facets
        ]
    return [_mixed(facets, call.data, ndim, channels), *[[] for _ in call.outs[1:]]]


def _layer_norm(call: Call, channels: LabelStore) -> list[Facets]:
    axes, facets = len(call.args[1]), call.labels_of(call.args[0]).facets
    kind = "RMSNorm" if "rms" in call.name else "LayerNorm"
    for f in (f for f in facets if _varies(f.shape[-axes:])):
        if _varies(f.shape[:-axes]):  # of each head for itself
            channels.fuse(f, range(f.ndim - axes, f.ndim))
        else:
            channels.refuse([f], f"passes {_who(call, kind)}: {_NORM}")
    return _entrywise(call, channels)


def _who(call: Call, kind: str) -> str:
    weight = call.option("weight")
    name = call.name_of(weight) if weight is not None else ""
    return f"{name.rpartition('.')[0]}, a {kind}" if name else f"a {kind}"


def _lookup(call: Call, channels: LabelStore) -> list[Facets]:
    """Rows of a table (embedding)."""
    table, places = call.args[:2]
    columns = [f for f in call.labels_of(table).facets if f.shape[1] > 1 and f.shape[0] == 1]
    channels.written(columns)
    return [[lifted(f, places.ndim + 1) for f in columns]]


def _product(call: Call, channels: LabelStore) -> list[Facets]:
    """Matrix products of two or more axes, and of vectors; a third tensor is added."""
    at = 0 if len(call.args) < 3 else 1
    a, b = call.args[at], call.args[at + 1]
    first, second = call.labels_of(a), call.labels_of(b)
    if a.ndim == 1:
        first = _of([f.unsqueeze(0) for f in first.facets], first)
    if b.ndim == 1:
        second = _of([f.unsqueeze(-1) for f in second.facets], second)
    found = contract(first, second, channels)
    if b.ndim == 1:
        found = [f.squeeze(-1) for f in found]
    if a.ndim == 1:
        found = [f.squeeze(-2 if b.ndim > 1 else -1) for f in found]
    if len(call.args) > 2:
        held = call.labels_of(call.args[0])
        facets = [(f, call.data) for f in found] + [(f, held.data) for f in held.facets]
        found = _mixed(facets, call.data, call.outs[0].ndim, channels)
    return [found]


def contract(a: Labels, b: Labels, channels: LabelStore) -> Facets:
    """Return the labels of a product of matrices (..., i, k) and (..., k, j).

    Along k both name the same channels; weights read them. What differs along the axes in front of
    a product of data with data is a head: all of its channels are one.
    """
    left = [f.unsqueeze(-1) for f in a.facets]
    right = [f.unsqueeze(-3) for f in b.facets]
    for f in left:
        for g in right:
            if f.shape[-2] > 1 and g.shape[-2] > 1:
                channels.unify(f, g)
                if a.data and b.data and not (_heads(f) or _heads(g)):
                    channels.refuse([f], "is read by a product of activations, without weights")
    found: Facets = []
    for held, other, facets in ((a, b, left), (b, a, right)):
        for f in facets:
            summed, differs = f.shape[-2] > 1, _varies([*f.shape[:-2], f.shape[-1]])
            if not held.data:
                _note_role(f, summed, other.data or not other.facets, held is a, channels)
            if summed and differs and a.data and b.data:
                f = channels.fuse(f, [-2])
                channels.headed([f])
            elif summed:
                continue
            _merge(found, f.squeeze(-2), channels)
    return found


def _note_role(f: Facet, summed: bool, with_data: bool, first: bool, channels: LabelStore) -> None:
    """Note whether weights of a product read or write; of two weights the first reads."""
    if summed and (with_data or first):
        channels.read([f])
    elif summed or with_data:
        channels.written([f])


def _attention(call: Call, channels: LabelStore) -> list[Facets]:
    """Attention in one operation: a product of queries and keys, and one with values."""
    q, k, v = (call.labels_of(x) for x in call.args[:3])
    num_heads = call.args[0].shape[1] if call.args[0].ndim > 3 else 1
    k, v = (_of([_repeated(f, 1, num_heads) for f in x.facets], x) for x in (k, v))
    scores = contract(q, _of([f.transpose(-1, -2) for f in k.facets], k), channels)
    bias = call.option("attn_mask", call.option("attn_bias"))
    if isinstance(bias, Tensor):
        held = call.labels_of(bias)
        facets = [(f, True) for f in scores] + [(f, held.data) for f in held.facets]
        scores = _mixed(facets, True, call.args[0].ndim, channels)
    crossing = [f for f in scores if f.shape[-1] > 1]
    channels.refuse(crossing, f"passes a softmax over the channels: {_OTHERS}")
    found = contract(_of(scores, Labels(data=True)), v, channels)
    return [found, *[[] for _ in call.outs[1:]]]


def _repeated(facet: Facet, axis: int, count: int) -> Facet:
    """Return each head of a facet as often as several queries share it."""
    size = facet.shape[axis] if facet.ndim > 3 else 1
    return facet.repeat_interleave(count // size, axis) if 1 < size < count else facet


def _convolution(call: Call, channels: LabelStore) -> list[Facets]:
    source, weight, bias = call.args[:3]
    transposed, groups = bool(call.option("transposed")), int(call.option("groups"))
    held, ndim = call.labels_of(source), source.ndim
    into = _one(held.facets, 1, channels)
    facets = call.labels_of(weight).facets
    first, second = _one(facets, 0, channels), _one(facets, 1, channels)
    if 1 < groups == source.shape[1]:
        made = _by_channel(into, first, call.outs[0].shape[1] // groups, transposed, channels)
    else:
        reads, writes = (first, second) if transposed else (second, first)
        if reads is not None and (held.data or not held.facets):  # or a constant
            channels.read([reads])
        _read_by_groups(into, reads, groups, channels)
        made = _written_by_groups(writes, call.outs[0].shape[1], groups, channels)
    found = [] if made is None else [(made.view(1, -1, *[1] * (ndim - 2)), True)]
    shifts = _one(call.labels_of(bias).facets, 0, channels)
    if shifts is not None:
        found.append((shifts.view(1, -1, *[1] * (ndim - 2)), False))
    return [_mixed(found, True, ndim, channels)]


def _by_channel(
    into: Facet | None, rows: Facet | None, per: int, transposed: bool, channels: LabelStore
) -> Facet | None:
    """Each channel has `per` filters of its own, which go with it (depthwise)."""
    if rows is None:
        return None if into is None else into.repeat_interleave(per)
    channels.written([rows])
    if not transposed:  # axis 0 counts the filters, not the channels
        rows = channels.fuse(rows.view(-1, per), [1])[:, 0]
    if into is not None:
        channels.unify(rows, into)
    return rows.repeat_interleave(per)


def _read_by_groups(
    into: Facet | None, reads: Facet | None, groups: int, channels: LabelStore
) -> None:
    """Each group reads as many channels: those at one place of all groups go together."""
    parts = [f for f in (into, reads) if f is not None]
    if parts and groups > 1:
        size = max(map(len, parts)) // groups
        parts = [channels.fuse(f.view(-1, size), [0]).flatten() for f in parts]
    if len(parts) == 2:
        channels.unify(parts[0], parts[1])


def _written_by_groups(
    writes: Facet | None, count: int, groups: int, channels: LabelStore
) -> Facet | None:
    """Each group writes as many channels: those at one place of all groups go together."""
    if writes is None:
        return None
    channels.written([writes])
    return channels.fuse(writes.view(-1, count // groups), [0]).flatten().repeat(groups)


def _one(facets: Iterable[Facet], axis: int, channels: LabelStore) -> Facet | None:
    """Return the labels along one axis, all others of the facet taken together."""
    for f in facets:
        if f.shape[axis] > 1:
            return channels.fuse(f, [a for a in range(f.ndim) if a != axis]).flatten()
    return None


def _of(facets: Facets, like: Labels) -> Labels:
    return Labels(tuple(facets), like.data)


def _fits(facet: Facet, out: Tensor) -> bool:
    if facet.ndim > out.ndim:
        return False
    sizes = zip(lifted(facet, out.ndim).shape, out.shape, strict=True)
    return all(size in (1, whole) for size, whole in sizes)


def _heads(facet: Facet) -> bool:
    """Say whether the factor of a product differs along the axes in front of its own three."""
    return _varies(facet.shape[:-3])


def _varies(sizes: Iterable[int]) -> bool:
    return any(size > 1 for size in sizes)


# What averages, and so depends on how many there are.
_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean")
_BY_NAME: dict[Rule, str] = {
    _same: "clone contiguous detach alias lift_fresh _to_copy",
    _moved: "view _unsafe_view reshape _reshape_alias as_strided permute transpose t expand "
    "unsqueeze squeeze slice select split split_with_sizes unsafe_split unsafe_chunk chunk unbind "
    "unfold narrow diagonal flip roll repeat repeat_interleave index index_select gather "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle rot90 "
    "unsafe_split_with_sizes",
    _padded: "constant_pad_nd",
    _put: "index_put _unsafe_index_put",
    _copied: "copy",
    _nothing: "zero fill zeros_like ones_like full_like rand_like randn_like empty_like new_zeros "
    "new_ones new_full new_empty _local_scalar_dense bernoulli normal uniform",
    _joined: "cat stack",
    _reduced: "sum mean amax amin var std var_mean std_mean linalg_vector_norm norm logsumexp prod "
    "any all max min argmax argmin median",
    _softmax: "_softmax _log_softmax _safe_softmax",
    _channel_norm: "native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm "
    "_batch_norm_with_update native_group_norm",
    _layer_norm: "native_layer_norm _fused_rms_norm",
    _lookup: "embedding",
    _product: "mm addmm bmm baddbmm mv addmv dot",
    _attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_fused_attention_overrideable",
    _convolution: "convolution _convolution cudnn_convolution",
}
_RULES: dict[str, Rule] = {name: rule for rule, names in _BY_NAME.items() for name in names.split()}
