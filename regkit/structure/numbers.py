"""Numbers that modules of a user's own keep of their channels: found by trying.

`self.hidden` of a ConvLSTM or `self.num_heads` of an attention says how a tensor is split or made.
Which of a module's numbers count channels cannot be read off, but with the right ones counted down
a cut model gives the right outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from regkit.structure.channels import Channels, Width
from regkit.structure.verify import likeness

Fault = Callable[[Channels], str | None]
_Kind = tuple[str, str, int]


def counted(
    sets: Sequence[Channels], model: nn.Module, fault: Fault
) -> tuple[list[Channels], dict[str, str]]:
    """Return the sets with the numbers that their removal lowers; by name, why others cannot go.

    fault: tries to cut some channels, and returns what is then wrong. What lies in layers of like
        names, within modules of like classes, does alike: it is asked for the first of these; and
        where that cannot go, other numbers of the same modules are not tried in deeper layers.
    """
    known: dict[Any, frozenset[_Kind] | str] = {}
    failed: dict[Any, str] = {}
    made, refused = [], {}
    for one in sets:
        numbers = (
            {_kind(w, model): w for w in _candidates(one, model)} if one.together is None else {}
        )
        if not numbers:
            made.append(one)
            continue
        key = frozenset(numbers), likeness([one])
        if key not in known:
            known[key] = failed.get(key[1]) or _found(one, numbers, fault)
        found = known[key]
        if isinstance(found, str):
            failed[key[1]] = found
            refused[one.name] = found
        else:
            made.append(_with(one, found, numbers))
    return made, refused


def _found(one: Channels, numbers: dict[_Kind, Width], fault: Fault) -> frozenset[_Kind] | str:
    """Return the numbers with which some channels can be cut, or what is wrong without any."""
    first = None
    for some in _choices(list(numbers)):
        why = fault(_with(one, some, numbers))
        if why is None:
            return some
        first = first or why
    return first or "no numbers were tried"


def _candidates(channels: Channels, model: nn.Module) -> Iterator[Width]:
    """Yield the numbers of all modules around the channels' layers that might count them."""
    sizes = {s.index.shape[1] for s in channels.slices}
    owners = dict.fromkeys(
        name for s in channels.slices for name in _around(s.tensor.rpartition(".")[0])
    )
    for name in owners:
        module = model.get_submodule(name)
        if _is_torch(type(module)):
            continue
        known = _known(module) | {w.attribute for w in channels.widths if w.module == name}
        for attribute, value in vars(module).items():
            if type(value) is not int or value < 2 or attribute in known:
                continue
            per, rest = divmod(value, channels.num_groups)
            if per and not rest and any(size % per == 0 for size in sizes):
                yield Width(name, attribute, per)


def _known(module: nn.Module) -> set[str]:
    """Return the numbers that a module has of a layer of torch: `layer_widths` counts those."""
    bases = filter(_is_torch, type(module).__mro__)
    return {name for cls in bases for name in vars(cls).get("__constants__", ())}


def _is_torch(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "torch"


def _around(name: str) -> Iterator[str]:
    """Yield a module's name and those of the modules around it, from the inside out."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _kind(width: Width, model: nn.Module) -> _Kind:
    cls = type(model.get_submodule(width.module))
    return f"{cls.__module__}.{cls.__qualname__}", width.attribute, width.per


def _choices(kinds: Sequence[_Kind]) -> Iterator[frozenset[_Kind]]:
    """Yield which numbers to lower: none, all, all but one, one."""
    yield frozenset()
    yield frozenset(kinds)
    if len(kinds) > 1:
        yield from (frozenset(kinds) - {one} for one in kinds)
    if len(kinds) > 2:
        yield from (frozenset({one}) for one in kinds)


def _with(channels: Channels, some: frozenset[_Kind], numbers: dict[_Kind, Width]) -> Channels:
    return replace(channels, widths=(*channels.widths, *(numbers[kind] for kind in some)))
