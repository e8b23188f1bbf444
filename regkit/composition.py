"""Which penalties may meet on one parameter, and in which order their proxes are exact."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import nn

from regkit.errors import InputError
from regkit.penalties import WeightPenalty
from regkit.terms import Part, Term

Chain = tuple[WeightPenalty, ...]


def compose(
    terms: Sequence[Term], names: Mapping[nn.Parameter, str]
) -> tuple[dict[nn.Parameter, Chain], list[Part]]:
    """Return the element-wise penalties of each parameter, in order, and the group penalties.

    Penalties without strength are left out: they change nothing, and may meet any other.
    Raises: InputError when no order of the proxes on some parameter is exact.
    """
    met: dict[nn.Parameter, list[WeightPenalty]] = defaultdict(list)
    rows: list[Part] = []
    for term in terms:
        for penalty, bundle in term.parts:
            if penalty.lam == 0:
                continue
            for parameter in dict.fromkeys(piece.parameter for piece in bundle.pieces):
                met[parameter].append(penalty)
            if not term.elementwise:
                rows.append((penalty, bundle))
    chains = {}
    for parameter, penalties in met.items():
        _check(penalties, names[parameter])
        alone = [p for p in penalties if p.layout == "entries"]
        if alone:
            chains[parameter] = tuple(sorted(alone, key=_rank))
    return chains, rows


def _rank(penalty: WeightPenalty) -> tuple[bool, bool, bool]:
    """Sort decoupled shrinkage first, then what composes, then the rest, then bounds."""
    return (not penalty.decoupled, not penalty.composes, _closes(penalty))


def _closes(penalty: WeightPenalty) -> bool:
    """Say whether it is a bound on single entries, which may follow any convex function of them."""
    return penalty.constraint and penalty.layout == "entries" and not penalty.composes


def _check(penalties: Sequence[WeightPenalty], parameter_name: str) -> None:
    """Refuse penalties whose proxes do not compose.

    A prox may follow one that composes where it keeps signs: for fixed signs the sum is a shift
    of the entries (Yu, NeurIPS 2013, theorem 1; for concave ones by the same shift). In one
    dimension the prox of a convex function on an interval is the clipped prox.
    """
    composing = [p for p in penalties if p.composes]
    bounds = [p for p in penalties if _closes(p)]
    others = [p for p in penalties if not (p.composes or p.decoupled or _closes(p))]
    exact = len(others) <= 1 and len(bounds) <= 1
    if bounds:
        exact = exact and all(p.layout == "entries" and p.convex for p in [*others, *composing])
    if composing:
        exact = exact and all(p.shrinks for p in others)
    if not exact:
        pair = " and ".join(type(p).__name__ for p in penalties if not p.decoupled)
        raise InputError(
            f"{pair} meet on {parameter_name!r}, and no order of their proxes is exact. Use "
            "one penalty that holds both (L1 with L2: ElasticNet; L1 with GroupLasso: the two "
            "compose; GroupLasso with L2: GroupElasticNet; two of a kind: add their lam), or "
            "give them different parameters in `on`."
        )
