"""The channels of a model, found by running it and tried by removing some of them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from regkit.errors import InputError
from regkit.structure.attention import head_slices, is_attention
from regkit.structure.attention import heads as known_heads
from regkit.structure.channels import (
    BUFFER,
    READER,
    WRITER,
    Channels,
    Coupling,
    LayerSlices,
    Slice,
    pieces_of,
)
from regkit.structure.groups import GroupSet, Piece
from regkit.structure.labels import Axis
from regkit.structure.layer_widths import widths
from regkit.structure.numbers import counted
from regkit.structure.recurrent import PROJECTED, suffixes, unit_slices
from regkit.structure.replica import (
    check_runs,
    cut_examples,
    replica,
    take_small_inputs,
    told,
    unwrapped,
)
from regkit.structure.selectors import EMBEDDINGS, NORMS, WEIGHTED, clean_name
from regkit.structure.trace import Traced, TracedGroup, trace
from regkit.structure.verify import CutVerifier, Unit

LAYERS = (*WEIGHTED, *NORMS, *EMBEDDINGS, nn.PReLU)  # whose channels are called like them


def couple(model: nn.Module, example: Any) -> Coupling:
    """Find what is removed together with each channel of a model.

    A copy runs in eval mode: weights, buffers and random numbers of the given model stay as they
    are. What the labels that follow that run say is then tried on a copy with random weights, by
    cutting channels out; what fails there is left out, with the reason.

    example: an input as in training: a tensor, a list or tuple of arguments, or a dict of named
        ones. The model runs on it about ten times, in float64: a batch of 1 is enough, and so is a
        small clip where the model takes any size.
    Raises: InputError when the model cannot be copied or does not run on the example.
    Source: Fang et al., DepGraph: Towards Any Structural Pruning, 2023, for what is coupled.
    """
    inner = unwrapped(model)
    copy = replica(inner)
    try:
        found, example = _smallest(copy, example)
        drafts = _CandidateGroups(copy, {clean_name(n): p for n, p in inner.named_parameters()})
        for one in found.groups():
            drafts.add(one)
        drafts.add_inner_layers()
        channels, notes = drafts.finished()
        if not channels:
            check_runs(copy, example, "couple")
            return Coupling((), tuple(notes))
        return _proved(channels, notes, CutVerifier(copy, example))
    except Exception as error:
        check_runs(replica(inner), example, "couple")
        return Coupling((), (f"all channels: their search failed ({told(error)})",))


def _smallest(model: nn.Module, example: Any) -> tuple[Traced, Any]:
    """Trace the model; return the smallest example with which it does the same, for the trials."""
    found = trace(model, example)
    take_small_inputs(model)
    for smaller in cut_examples(example):
        try:
            other = trace(model, smaller)
        except Exception:  # Some nets take one size only.
            continue
        if found.agrees(other):
            return found, smaller
    return found, example


def channels(model: nn.Module, example: Any) -> tuple[Sequence[GroupSet], Sequence[str]]:
    """Return all that writes each channel, and what is none.

    Raises: InputError as `couple` does, without an example, and for a model that is sharded.
    """
    return _group_sets(model, example, "channel")


def readers(model: nn.Module, example: Any) -> tuple[Sequence[GroupSet], Sequence[str]]:
    """Return all that reads each channel, and what is none; errors as of `channels`."""
    return _group_sets(model, example, "channel_inputs")


def heads(model: nn.Module, example: Any) -> tuple[Sequence[GroupSet], Sequence[str]]:
    """Return the heads of all attention layers: those that are known, others by a run.

    A head is what writes its queries, keys and values, and what reads it; heads that share keys are
    one. Without an example, attention that is not known is left out, with a note.
    Raises: InputError as of `channels`, when there is an example and such attention.
    """
    known = known_heads(model)
    modules = dict(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if is_attention(module))
    others = [
        name
        for name, module in modules.items()
        if "attention" in type(module).__name__.lower()
        and not is_attention(module)
        and not name.startswith(inside)
    ]
    if not others:
        return known, ()
    if example is None:
        kind = type(modules[others[0]]).__name__
        return known, (
            f"{others[0]}: the heads of {kind} are found by running the model: give example=<a "
            "clip as in training, batch of 1>, or set model.example_input_array",
        )
    coupling = couple(model, example)
    found = [GroupSet(c.name, c.writers + c.readers) for c in coupling.channels if c.head]
    return [*known, *found], coupling.notes


def _group_sets(
    model: nn.Module, example: Any, side: str
) -> tuple[Sequence[GroupSet], Sequence[str]]:
    if example is None:
        raise InputError(
            f"got groups={side!r}, which are found by running the model once, and no example to "
            "run it with. Give example=<a clip as in training, batch of 1>, or set "
            "model.example_input_array."
        )
    if sharded := [name for name, p in model.named_parameters() if hasattr(p, "placements")]:
        raise InputError(
            f"got groups={side!r}, which are found by running a copy of the model, and it is "
            f"sharded ({sharded[0]!r}): FSDP2 allows no copy. Make the Regularizer before "
            "fully_shard; attach then takes over the shards."
        )
    coupling = couple(model, example)
    return coupling.group_sets(side), coupling.notes


class _CandidateGroups:
    """Channels as the graph proposes them, and the reasons for those that are not to be cut."""

    def __init__(self, copy: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
        self._copy = copy
        self._parameters = parameters
        self._modules = dict(copy.named_modules())
        self._order = {name: place for place, name in enumerate(self._modules)}
        self._tied = _tied(copy)
        self._buffers = {name for name, _ in copy.named_buffers()}
        self._channels: list[Channels] = []
        self._refused: dict[tuple[str, str], int] = defaultdict(int)

    def add(self, found: TracedGroup) -> None:
        """Take channels in, or note why not."""
        axes = sorted(found.index, key=lambda axis: self._place(axis.tensor))
        writers = [a for a in axes if a not in found.reads and a.tensor not in self._buffers]
        if not writers or self._in_known_attention(axes):
            return
        name, together = self._name(writers)
        held = found.why or self._held(found, axes)
        count = len(found.index[axes[0]])
        self._take(name, held, together, count, head=found.head)

    def add_inner_layers(self) -> None:
        """Take in what only the same module reads: attention heads, and units of inner layers."""
        for name, module in self._modules.items():
            if is_attention(module):
                held, count = head_slices(name, module), int(module.num_heads)  # type: ignore[arg-type]: a number
                # Without its rows a head still hands on the shift of the norm that follows.
                self._take(f"{name}.heads", held, None, count, traced=False, by_writers=False)
            if isinstance(module, nn.RNNBase) and module.proj_size:
                self._refused[(name, PROJECTED)] += module.hidden_size
            elif isinstance(module, nn.RNNBase):
                for level, ends in enumerate(suffixes(module)[:-1]):
                    for direction, end in enumerate(ends):
                        units = torch.arange(module.hidden_size)
                        held = unit_slices(name, module, level, direction, units)
                        full, together = f"{name}.{end[1:]}", _together(name, module)
                        self._take(full, held, together, len(units))

    def finished(self) -> tuple[list[Channels], list[str]]:
        """Return the channels in the order of the model, and a line for each of the rest.

        Those of a recurrent layer stay together: all of its layers and directions, or none.
        """
        present: dict[str | None, int] = defaultdict(int)
        for c in self._channels:
            present[c.together] += 1
        kept = []
        for c in self._channels:
            layer = self._modules.get(c.together) if c.together is not None else None
            if isinstance(layer, nn.RNNBase) and present[c.together] < _num_sets(layer):
                why = f"other units of {c.together} cannot be removed"
                self._refused[(c.name, why)] += c.num_groups
            else:
                kept.append(c)
        notes = [f"{name} ({count}): {why}" for (name, why), count in self._refused.items()]
        return sorted(kept, key=lambda c: self._place(c.name)), sorted(notes)

    def _take(
        self, name: str, held: LayerSlices | str, together: str | None, count: int, **known: bool
    ) -> None:
        made = held if isinstance(held, str) else self._made(name, held, together)
        if isinstance(made, Channels):
            twins = sum(c.name.split(" #")[0] == name for c in self._channels)
            named = f"{name} #{twins + 1}" if twins else made.name
            self._channels.append(replace(made, name=named, **known))
        else:
            self._refused[(name, made)] += count

    def _made(self, name: str, held: LayerSlices, together: str | None) -> Channels | str:
        slices, counts = held
        if all(s.role != READER for s in slices):
            return "no weight reads it"
        if slices[0].index.shape[0] < 2:
            return "has one channel only"
        pieces: dict[str, list[Piece]] = {WRITER: [], READER: []}
        for s in slices:
            if s.tensor in self._tied:
                return f"passes {s.tensor}, which several layers share"
            if s.role != BUFFER:
                views = pieces_of(s, self._parameters[clean_name(s.tensor)])
                if views is None:
                    return f"its places in {s.tensor} follow no pattern"
                pieces[s.role] += views
        writers, readers = tuple(pieces[WRITER]), tuple(pieces[READER])
        return Channels(name, writers, readers, tuple(slices), tuple(counts), together)

    def _held(self, found: TracedGroup, axes: Sequence[Axis]) -> LayerSlices | str:
        """Return all slices of tensors that belong to the channels, and the numbers of layers."""
        slices, counts = [], []
        for axis in axes:
            index, module = found.index[axis], self._modules.get(axis.tensor)
            if isinstance(module, nn.RNNBase):
                if index.shape[1] != 1:
                    return f"its units of {axis.tensor} belong to several channels"
                level = module.num_layers - 1
                held = unit_slices(axis.tensor, module, level, axis.axis, index[:, 0])
                slices, counts = slices + held[0], counts + held[1]
                continue
            role = BUFFER if axis.tensor in self._buffers else WRITER
            slices.append(
                Slice(axis.tensor, axis.axis, index, READER if axis in found.reads else role)
            )
            owner, _, leaf = axis.tensor.rpartition(".")
            counts += widths(owner, self._owner(axis.tensor), leaf, axis.axis, index.shape[1])
        return slices, counts

    def _in_known_attention(self, axes: Sequence[Axis]) -> bool:
        """Say whether these are heads of a layer whose heads are known without a run."""
        return any(
            all(axis.tensor.startswith(f"{name}.") for axis in axes)
            for name, module in self._modules.items()
            if is_attention(module)
        )

    def _name(self, writers: list[Axis]) -> tuple[str, str | None]:
        """Return the first layer, and the recurrent layer that these are hidden units of."""
        for axis in writers:
            module = self._modules.get(axis.tensor)
            if isinstance(module, nn.RNNBase):
                end = suffixes(module)[-1][axis.axis]
                return f"{axis.tensor}.{end[1:]}", _together(axis.tensor, module)
        first = writers[0].tensor
        owner = first.rpartition(".")[0].partition(".parametrizations")[0]
        return (owner if isinstance(self._modules[owner], LAYERS) else first), None

    def _owner(self, name: str) -> nn.Module:
        """Return the module that holds the tensor of that name."""
        return self._copy.get_submodule(name.rpartition(".")[0])

    def _place(self, name: str) -> tuple[int, str]:
        """Return where the model has a module, or what one holds."""
        owner = name if name in self._order else name.rpartition(".")[0]
        return self._order.get(owner, len(self._order)), name


def _proved(channels: list[Channels], notes: Iterable[str], trial: CutVerifier) -> Coupling:
    """Keep what the trial finds removable."""
    unseen = {c.name: why for c in channels if (why := trial.unseen(c)) is not None}
    lost = {c.together for c in channels if c.name in unseen and c.together is not None}
    seen = [c for c in channels if c.name not in unseen and c.together not in lost]
    seen, wrong = counted(seen, trial.model, lambda one: trial.fault([[one]], READER))
    wrong |= trial.verify(_units(seen), READER)
    whole = {c.name for c in channels if c.head}
    wrong = {name: _of_heads(why) if name in whole else why for name, why in wrong.items()}
    right = [c for c in seen if c.name not in wrong]
    readers_only = trial.verify(_units([c for c in right if c.by_writers]), WRITER)
    idle = {clean_name(name.rpartition(".")[0] or name) for name in trial.unreached}
    lines = [
        *notes,
        *(f"{name}: the outputs do not depend on it in eval mode" for name in sorted(idle)),
        *(f"{name}: {why}" for name, why in (unseen | wrong).items()),
        *(f"{name}: not removable by zero writers: {why}" for name, why in readers_only.items()),
    ]
    kept = (replace(c, by_writers=c.by_writers and c.name not in readers_only) for c in right)
    return Coupling(tuple(kept), tuple(lines))


def _of_heads(why: str) -> str:
    return f"its heads cannot be cut, for the code around them takes this number alone ({why})"


def _units(channels: list[Channels]) -> list[Unit]:
    units: dict[str, list[Channels]] = defaultdict(list)
    for c in channels:
        units[f"together {c.together}" if c.together is not None else f"alone {c.name}"].append(c)
    return list(units.values())


def _together(name: str, layer: nn.RNNBase) -> str | None:
    return name if _num_sets(layer) > 1 else None


def _num_sets(layer: nn.RNNBase) -> int:
    return sum(map(len, suffixes(layer)))


def _tied(model: nn.Module) -> set[str]:
    """Return the names of parameters that several modules hold."""
    owners: dict[nn.Parameter, set[int]] = defaultdict(set)
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        owners[parameter].add(hash((id(model.get_submodule(owner)), leaf)))
        names[parameter].append(name)
    return {n for p, found in names.items() if len(owners[p]) > 1 for n in found}
