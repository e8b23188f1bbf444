"""Weight penalties bound to a model: the groups they see, what they add, what they leave out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regkit.coupling.attention import heads
from regkit.coupling.couple import couple
from regkit.coupling.recurrent import units
from regkit.errors import InputError
from regkit.groups import Bundle, Piece, View, view_of
from regkit.penalties import Penalty, WeightPenalty
from regkit.ranks import local, plain, shared_rows, summed, whole_rows
from regkit.targets import Entry, survey

Part = tuple[WeightPenalty, Bundle]
Penalties = Penalty | Sequence[Penalty] | Mapping[str, Penalty]
Held = TypeVar("Held", Entry, Piece)


@dataclass(frozen=True, eq=False)
class Term:
    """One weight penalty of the objective F, bound to a model.

    entries: every parameter of the model, chosen or with the reason why not.
    parts: the groups that it acts on, each with the penalty at the strength that holds there.
    notes: what was left out beside single parameters, and why.
    factors: what the strength is multiplied by besides, by the name of a bundle.
    """

    name: str
    penalty: WeightPenalty
    entries: Sequence[Entry]
    parts: Sequence[Part]
    notes: Sequence[str] = ()
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def elementwise(self) -> bool:
        """Say whether every entry is by itself."""
        return self.penalty.layout == "entries"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that it acts on, by name."""
        return {e.name: e.parameter for e in self.entries if e.chosen}

    def lines(self) -> list[str]:
        """Say how many groups there are, and what is none."""
        if self.elementwise:
            return []
        count = sum(bundle.num_groups for _, bundle in self.parts)
        return [f"  {count:,} groups ({self.penalty.layout})", *(f"  {n}" for n in self.notes)]

    def weighted(self) -> list[Part]:
        """Return the parts with the penalty at the strength that `factors` make of it."""
        return [(p.at(self.factors.get(b.name, 1.0)), b) for p, b in self.parts]

    @torch.no_grad()
    def shares(self) -> dict[str, float]:
        """Return the share of non-zero entries of each part, by the name of its bundle."""
        if self.elementwise:
            whole = {b.name: b.pieces[0].parameter for _, b in self.parts}
            counts = torch.stack([(local(p) != 0).sum() for p in whole.values()])
            sizes = torch.tensor([p.numel() for p in whole.values()], device=counts.device)
            found = summed(counts, list(whole.values())) / sizes
            return dict(zip(whole, found.tolist(), strict=True))
        rows = whole_rows([(bundle.name, bundle) for _, bundle in self.parts])
        shares = {name: (seen != 0).float().mean() for name, seen in rows}
        return dict(zip(shares, torch.stack(list(shares.values())).tolist(), strict=True))

    @torch.no_grad()
    def value(self, strength: float = 1.0) -> Float[Tensor, ""]:
        """Return what it adds to F, with `lam` times the strength."""
        rows = (
            ((penalty, b.pieces[0].parameter) for penalty, b in self.weighted())
            if self.elementwise
            else whole_rows(self.weighted())
        )
        values = [plain(penalty.at(strength).value(_full(seen))) for penalty, seen in rows]
        return torch.stack(values).sum()

    @torch.no_grad()
    def num_live(self) -> Int[Tensor, ""]:
        """Count the groups that are not zero."""
        return torch.stack([(rows != 0).any(1).sum() for _, rows in whole_rows(self.parts)]).sum()

    def within(self, parameters: Mapping[str, nn.Parameter]) -> "Term":
        """Return the term bound to the parameters that have its names now.

        `fully_shard` puts others in the place of those that it finds.
        Raises: InputError when their shards are such that its groups cannot be put together.
        """

        def follow(thing: Held) -> Held:
            now = parameters.get(thing.name, thing.parameter)
            return replace(thing, parameter=now) if now.shape == thing.parameter.shape else thing

        parts = [
            (penalty, replace(bundle, pieces=tuple(follow(piece) for piece in bundle.pieces)))
            for penalty, bundle in self.parts
        ]
        _check_shards(self.penalty, [bundle for _, bundle in parts])
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


def bind(model: nn.Module, name: str, penalty: WeightPenalty, example: Any = None) -> Term:
    """Find what a penalty acts on.

    example: what the model is called with, for groups that are found by tracing it.
    Raises: InputError when nothing is left to penalise, or when an example is missing.
    """
    entries = survey(model, penalty.on)
    who = type(penalty).__name__
    if not any(e.chosen for e in entries):
        reasons = "; ".join(dict.fromkeys(e.why for e in entries)) or "it has none at all"
        raise InputError(
            f"{who}: {type(model).__name__} has no parameter to penalise: no weight of a "
            "convolution, linear, attention or recurrent layer is left. Name parameters in `on`. "
            f"(Left out: {reasons}.)"
        )
    scale = _factors(model, penalty)
    notes: Sequence[str] = ()
    if penalty.layout == "entries":
        bundles = [_single(e, _whole(e)) for e in entries if e.chosen]
    elif penalty.layout in ("unit", "head", "channel", "reader"):
        found, notes = _structures(model, penalty, example)
        bundles = _chosen(found, entries)
        entries = [_told(e, bundles, penalty.layout) for e in entries]
    else:
        entries, bundles = _singles(entries, penalty.layout)
    if not bundles:
        reasons = [*notes, *sorted({e.why for e in entries if not e.chosen})]
        raise InputError(
            f"{who} got groups={penalty.layout!r}, and {type(model).__name__} has none among the "
            f"weights that `on` chooses ({'; '.join(reasons)}). Choose other weights or groups."
        )
    _check_shards(penalty, bundles)
    parts = [(_scaled(penalty, scale, bundle), bundle) for bundle in bundles]
    return Term(name, penalty, entries, parts, notes)


def _singles(entries: Sequence[Entry], layout: str) -> tuple[list[Entry], list[Bundle]]:
    told, bundles = [], []
    for e in entries:
        view = view_of(e, layout) if e.chosen else e.why
        if isinstance(view, str):
            told.append(replace(e, chosen=False, why=view))
        else:
            told.append(e)
            bundles.append(_single(e, view))
    return told, bundles


def _structures(
    model: nn.Module, penalty: WeightPenalty, example: Any
) -> tuple[Sequence[Bundle], Sequence[str]]:
    """Return the groups that several parameters hold together, and what is none."""
    if penalty.layout == "unit":
        return units(model), ()
    if penalty.layout == "head":
        return heads(model), ()
    if example is None:
        raise InputError(
            f"{type(penalty).__name__} got groups={penalty.layout!r}, which are found by running "
            "the model once, and no example to run it with. Give example=<a clip as in training, "
            "batch of 1>, or set model.example_input_array."
        )
    if sharded := [name for name, p in model.named_parameters() if hasattr(p, "placements")]:
        raise InputError(
            f"{type(penalty).__name__} got groups={penalty.layout!r}, which are found by running a "
            f"copy of the model, and it is sharded ({sharded[0]!r}): FSDP2 allows no copy. Make "
            "the Regularizer before fully_shard; attach then takes over the shards."
        )
    coupling = couple(model, example)
    return coupling.bundles(penalty.layout), coupling.notes


def _chosen(bundles: Sequence[Bundle], entries: Sequence[Entry]) -> list[Bundle]:
    """Keep what `on` chooses: a bundle is taken whole when it holds a chosen weight.

    Not when it holds one that `!` leaves out. Frozen parameters stay outside.
    """
    by_parameter = {e.parameter: e for e in entries}
    kept = []
    for bundle in bundles:
        members = [by_parameter[p.parameter] for p in bundle.pieces if p.parameter in by_parameter]
        left_out = any(e.why.startswith("left out") for e in members)
        pieces = tuple(p for p in bundle.pieces if p.parameter.requires_grad)
        if pieces and not left_out and any(e.chosen for e in members):
            kept.append(replace(bundle, pieces=pieces))
    return kept


def _told(entry: Entry, bundles: Sequence[Bundle], layout: str) -> Entry:
    for bundle in bundles:
        if any(p.parameter is entry.parameter for p in bundle.pieces):
            return replace(entry, chosen=True, why=f"{layout} of {bundle.name}")
    why = entry.why if not entry.chosen else f"belongs to no {layout} that can be removed"
    return replace(entry, chosen=False, why=why)


def _single(entry: Entry, view: View) -> Bundle:
    return Bundle(entry.name, (Piece(entry.name, entry.parameter, view),))


def _whole(entry: Entry) -> View:
    shape = tuple(entry.parameter.shape)
    return View(shape, tuple(range(len(shape))), lead=0)


def _factors(model: nn.Module, penalty: WeightPenalty) -> dict[nn.Parameter, float]:
    """Return the factor of each parameter that one is given for; the first selector decides."""
    factors: dict[nn.Parameter, float] = {}
    for selector, factor in penalty.factors:  # type: ignore[misc]: pairs after __post_init__
        for e in survey(model, selector):
            if e.chosen:
                factors.setdefault(e.parameter, float(factor))
    return factors


def _scaled(
    penalty: WeightPenalty, factors: Mapping[nn.Parameter, float], bundle: Bundle
) -> WeightPenalty:
    given = [factors[p.parameter] for p in bundle.pieces if p.parameter in factors]
    return replace(penalty, lam=penalty.lam * given[0]) if given else penalty


def _check_shards(penalty: WeightPenalty, bundles: Sequence[Bundle]) -> None:
    """Refuse weights that ranks share in a way in which groups cannot be put together."""
    for bundle in bundles if penalty.layout != "entries" else ():
        try:
            shared_rows(bundle)
        except InputError as error:
            raise InputError(f"{type(penalty).__name__} on {bundle.name!r}: {error}") from error


def _full(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
