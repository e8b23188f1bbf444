"""Weight penalties bound to a model: the groups they see, what they add, what they leave out."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.optim.parts import Part
from regkit.penalties import Penalty, WeightPenalty
from regkit.structure.distributed import (
    all_reduce_counts,
    full_tensor,
    local,
    shared_rows,
    whole_rows,
)
from regkit.structure.groups import COUPLED, GroupSet, GroupView, Piece, view_of
from regkit.structure.output_layers import output_parameters
from regkit.structure.selectors import Entry, select_parameters

Penalties = Penalty | Sequence[Penalty] | Mapping[str, Penalty]
OUTPUT_ROWS = "rows of the output layer, which are classes; name it in `params` to penalise them"
Named = TypeVar("Named", Entry, Piece)


@dataclass(frozen=True, eq=False)
class BoundPenalty:
    """One weight penalty of the objective F, bound to a model.

    entries: every parameter of the model, chosen or with the reason why not.
    parts: the groups that it acts on, each with the penalty at the strength that holds there;
        frozen parameters among them, which count once they are trained.
    notes: what was left out beside single parameters, and why.
    """

    name: str
    penalty: WeightPenalty
    entries: Sequence[Entry]
    parts: Sequence[Part]
    notes: Sequence[str] = ()

    @property
    def elementwise(self) -> bool:
        """Say whether every entry is by itself."""
        return self.penalty.layout == "entries"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that it acts on, by name."""
        return {e.name: e.parameter for e in self.entries if e.chosen}

    def describe(self) -> list[str]:
        """Return lines that say how many groups there are, and what was left out and why."""
        if self.elementwise:
            return []
        count = sum(part.group_set.num_groups for part in self.parts)
        return [f"  {count:,} groups ({self.penalty.layout})", *(f"  {n}" for n in self.notes)]

    def trained_parts(self) -> list[Part]:
        """Return the parts without what is frozen now."""
        return [now for part in self.parts if (now := part.trained()) is not None]

    @torch.no_grad()
    def layer_density(self) -> dict[str, float]:
        """Return the share of non-zero entries of each part, by its key (a collective)."""
        parts = [part for part in self.trained_parts() if part.penalty.lam > 0]
        if not parts:
            return {}
        if self.elementwise:
            whole = {part.key: part.group_set.pieces[0].parameter for part in parts}
            counts = torch.stack([torch.count_nonzero(local(p)) for p in whole.values()])
            sizes = torch.tensor([p.numel() for p in whole.values()], device=counts.device)
            found = all_reduce_counts(counts, list(whole.values())) / sizes
            return dict(zip(whole, found.tolist(), strict=True))
        rows = whole_rows([(part.key, part.group_set) for part in parts])
        shares = {key: (seen != 0).float().mean() for key, seen in rows}
        return dict(zip(shares, torch.stack(list(shares.values())).tolist(), strict=True))

    @torch.no_grad()
    def value(
        self, scale: Callable[[Part], WeightPenalty | None] = lambda part: part.penalty
    ) -> Float[Tensor, ""]:
        """Return what it adds to F; frozen weights add nothing.

        scale: gives the penalty of a part at its strength; None where it is off.
        """
        acting = [(now, p.group_set) for p in self.trained_parts() if (now := scale(p)) is not None]
        rows = (
            ((penalty, group_set.pieces[0].parameter) for penalty, group_set in acting)
            if self.elementwise
            else whole_rows(acting)
        )
        values = [full_tensor(penalty.value(_full(seen))) for penalty, seen in rows]
        return torch.stack(values).sum() if values else torch.zeros(())

    @torch.no_grad()
    def num_live(self) -> Int[Tensor, ""]:
        """Count the groups that are not zero."""
        rows = whole_rows([(None, part.group_set) for part in self.parts])
        return torch.stack([(seen != 0).any(1).sum() for _, seen in rows]).sum()

    def rebind(self, parameters: Mapping[str, nn.Parameter]) -> "BoundPenalty":
        """Return the penalty bound to the parameters that have its names now.

        `fully_shard` puts others in the place of those that it finds.
        Raises: InputError when their shards are such that its groups cannot be put together.
        """

        def follow(thing: Named) -> Named:
            now = parameters.get(thing.name, thing.parameter)
            return replace(thing, parameter=now) if now.shape == thing.parameter.shape else thing

        parts = []
        for part in self.parts:
            pieces = tuple(follow(piece) for piece in part.group_set.pieces)
            parts.append(replace(part, group_set=replace(part.group_set, pieces=pieces)))
        _check_shards(self.penalty, [part.group_set for part in parts])
        return replace(self, entries=[follow(e) for e in self.entries], parts=parts)


def named(penalties: Penalties) -> dict[str, Penalty]:
    """Return penalties by name; without names, by the module that defines each."""
    if isinstance(penalties, Penalty):
        penalties = [penalties]
    by_name: dict[str, Penalty] = {}
    if isinstance(penalties, Mapping):
        by_name.update(penalties)
    else:
        for p in penalties:
            stem = type(p).__module__.rpartition(".")[2]
            count = sum(type(p) is type(other) for other in by_name.values())
            by_name[f"{stem}_{count + 1}" if count else stem] = p
    for name, p in by_name.items():
        if not isinstance(p, Penalty):
            raise InputError(
                f"Regularizer got {p!r} as penalty {name!r}; give penalties such as L1(lam=1e-4)."
            )
    return by_name


def bind(model: nn.Module, name: str, penalty: WeightPenalty, example: Any = None) -> BoundPenalty:
    """Find what a penalty acts on.

    example: what the model is called with, for groups that are found by tracing it.
    Raises: InputError when nothing is left to penalise, or when an example is missing.
    """
    entries = select_parameters(model, penalty.params)
    who = type(penalty).__name__
    if not any(e.chosen for e in entries):
        reasons = "; ".join(dict.fromkeys(e.why for e in entries)) or "it has none at all"
        raise InputError(
            f"{who}: {type(model).__name__} has no parameter to penalise: no weight of a "
            "convolution, linear, attention or recurrent layer is left. Name some in `params`. "
            f"(Left out: {reasons}.)"
        )
    scale = _factors(model, penalty)
    notes: Sequence[str] = ()
    if penalty.layout == "entries":
        group_sets = [_single(e, _whole(e)) for e in entries if e.chosen]
    elif penalty.layout in COUPLED:
        found, notes = _coupled(model, penalty, example)
        group_sets = _chosen(found, entries)
        entries = [_told(e, group_sets, penalty.layout) for e in entries]
    else:
        if penalty.layout == "filter" and not penalty.joint:  # low rank removes no row
            entries = _without_output_rows(model, penalty, entries, example)
        entries, group_sets = _singles(entries, penalty.layout)
    if not group_sets:
        reasons = [*notes, *sorted({e.why for e in entries if not e.chosen})]
        raise InputError(
            f"{who} got groups={penalty.layout!r}, and {type(model).__name__} has none among the "
            f"weights that `params` chooses ({'; '.join(reasons)}). Choose other weights or groups."
        )
    _check_shards(penalty, group_sets)
    parts = [Part(_scaled(penalty, scale, b), b, f"{name}/{b.name}") for b in group_sets]
    return BoundPenalty(name, penalty, entries, parts, notes)


def _singles(entries: Sequence[Entry], layout: str) -> tuple[list[Entry], list[GroupSet]]:
    told, group_sets = [], []
    for e in entries:
        view = view_of(e, layout) if e.chosen else e.why
        if isinstance(view, str):
            told.append(replace(e, chosen=False, why=view))
        else:
            told.append(e)
            group_sets.append(_single(e, view))
    return told, group_sets


def _without_output_rows(
    model: nn.Module, penalty: WeightPenalty, entries: Sequence[Entry], example: Any
) -> list[Entry]:
    """Leave out the rows of the layers that the model ends with, unless they are named in `params`.

    They are classes, and one that is gone can never be predicted. A model of a single layer has no
    other rows, and keeps them.
    """
    ends = output_parameters(model, example)
    if not any(e.chosen and e.parameter not in ends for e in entries):
        return list(entries)
    return [
        replace(e, chosen=False, why=OUTPUT_ROWS)
        if e.chosen and e.parameter in ends and not _is_named(e, penalty)
        else e
        for e in entries
    ]


def _is_named(entry: Entry, penalty: WeightPenalty) -> bool:
    """Say whether `params` chooses a parameter by a name, and not by a type or by default."""
    types = {cls.__name__ for cls in type(entry.module).__mro__}
    on = (penalty.params,) if isinstance(penalty.params, str | type) else penalty.params
    names = [s for s in on if isinstance(s, str) and s not in types]
    return any(entry.why in (f"on {s}", f"on *.{s}") for s in names)


def _coupled(
    model: nn.Module, penalty: WeightPenalty, example: Any
) -> tuple[Sequence[GroupSet], Sequence[str]]:
    """Return the groups that several parameters hold together, and what is none."""
    module, _, function = COUPLED[penalty.layout].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(model, example)
    except InputError as error:
        raise InputError(f"{type(penalty).__name__}: {error}") from error


def _chosen(group_sets: Sequence[GroupSet], entries: Sequence[Entry]) -> list[GroupSet]:
    """Keep what `params` chooses: a group set is taken whole when it holds a chosen weight.

    Not when it holds one that `!` leaves out. Frozen parameters wait until they are trained.
    """
    by_parameter = {e.parameter: e for e in entries}
    kept = []
    for group_set in group_sets:
        members = [
            by_parameter[p.parameter] for p in group_set.pieces if p.parameter in by_parameter
        ]
        left_out = any(e.why.startswith("left out") for e in members)
        if not left_out and any(e.chosen for e in members):
            kept.append(group_set)
    return kept


def _told(entry: Entry, group_sets: Sequence[GroupSet], layout: str) -> Entry:
    for group_set in group_sets:
        if any(p.parameter is entry.parameter for p in group_set.pieces):
            return replace(entry, chosen=True, why=f"{layout} of {group_set.name}")
    why = entry.why if not entry.chosen else f"belongs to no {layout} that can be removed"
    return replace(entry, chosen=False, why=why)


def _single(entry: Entry, view: GroupView) -> GroupSet:
    return GroupSet(entry.name, (Piece(entry.name, entry.parameter, view),))


def _whole(entry: Entry) -> GroupView:
    shape = tuple(entry.parameter.shape)
    return GroupView(shape, tuple(range(len(shape))), lead=0)


def _factors(model: nn.Module, penalty: WeightPenalty) -> dict[nn.Parameter, float]:
    """Return the factor of each parameter that one is given for; the first selector decides."""
    factors: dict[nn.Parameter, float] = {}
    for selector, factor in penalty.lam_scale:  # type: ignore[misc]: pairs after __post_init__
        for e in select_parameters(model, selector):
            if e.chosen:
                factors.setdefault(e.parameter, float(factor))
    return factors


def _scaled(
    penalty: WeightPenalty, factors: Mapping[nn.Parameter, float], group_set: GroupSet
) -> WeightPenalty:
    given = [factors[p.parameter] for p in group_set.pieces if p.parameter in factors]
    return replace(penalty, lam=penalty.lam * given[0]) if given else penalty


def _check_shards(penalty: WeightPenalty, group_sets: Sequence[GroupSet]) -> None:
    """Refuse weights that ranks share in a way in which groups cannot be put together."""
    for group_set in group_sets if penalty.layout != "entries" else ():
        try:
            shared_rows(group_set)
        except InputError as error:
            raise InputError(f"{type(penalty).__name__} on {group_set.name!r}: {error}") from error


def _full(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
