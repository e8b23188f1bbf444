"""Which candidate cross-validation chooses, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from regkit.errors import InputError
from regkit.selection.one_error import within_one_error

RULES = ("one_se", "min")


@dataclass(frozen=True)
class Choice:
    """What was chosen among candidates (strengths, or strengths and mixes), and on what grounds.

    chosen, best: places among the candidates; `best` has the least mean error.
    means, errors: mean error of each candidate, and its standard error; None where it was dropped,
        and standard errors are None when there is one fold.
    limit: mean errors up to this were allowed.
    folds: places of the folds that all candidates were judged on.
    dropped: places of the candidates that were not judged, for they failed on too many folds.
    why: the grounds, in sentences.
    """

    chosen: int
    best: int
    means: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    limit: float
    rule: str
    folds: tuple[int, ...]
    dropped: tuple[int, ...]
    why: tuple[str, ...]


def choose(
    errors: Float[np.ndarray, "folds candidates"],
    lams: Sequence[float | int],
    *,
    densities: Sequence[float | int] | None = None,
    weights: Sequence[float | int] | None = None,
    rule: str = "one_se",
) -> Choice:
    """Choose a candidate from the errors of cross-validation.

    "min" takes the least mean error. "one_se" takes the strongest candidate whose mean error is at
    most one standard error (of the best) above that (`one_error`). That of a mean over k folds is
    sqrt(sum_i v_i (e_i - mean)^2 / (k - 1)), v_i the weights of the folds over their sum.

    errors: NaN where a job failed. A candidate without results in more than half of the folds is
        dropped; the others are judged on the folds that all of them share, and where fewer than
        two are left, further candidates with gaps are dropped.
    lams: strength of each candidate; the largest is the strongest.
    densities: mean density of each candidate, where strengths alone do not say which is sparser
        (several mixes, several penalties): the least is the strongest.
    weights: of the folds, such as their numbers of videos; default: equal.
    Raises: InputError when shapes, the rule or the weights are wrong, or when too little is left.
    """
    _check(errors, lams, densities, weights, rule)
    folds, candidates = _shared(errors, 1 if rule == "min" else 2)
    share = np.ones(len(errors)) if weights is None else np.asarray(weights, dtype=float)
    table = errors[np.ix_(folds, candidates)].astype(float)
    means, deviations = _moments(table, share[folds] / share[folds].sum())
    if not np.isfinite(means).any():
        raise InputError("choose: no candidate has a finite mean error. Lower the strengths.")

    strengths = [_strength(place, lams, densities) for place in candidates]
    one_se = rule == "one_se"
    spread = deviations if one_se else np.zeros(len(means))
    found = within_one_error(means.tolist(), spread.tolist(), strengths)
    best, chosen = (candidates[k] for k in (found.best, found.chosen if one_se else found.best))
    return Choice(
        chosen=chosen,
        best=best,
        means=_placed(means, candidates, len(lams)),
        errors=_placed(deviations, candidates, len(lams)),
        limit=found.limit,
        rule=rule,
        folds=tuple(folds),
        dropped=tuple(k for k in range(len(lams)) if k not in candidates),
        why=(
            *_grounds(rule, lams, best, chosen, means[found.best], found.limit),
            *_gaps(errors, folds, candidates, lams),
            *_ends(lams, candidates, best, chosen),
        ),
    )


def _check(
    errors: np.ndarray,
    lams: Sequence[float | int],
    densities: Sequence[float | int] | None,
    weights: Sequence[float | int] | None,
    rule: str,
) -> None:
    num_folds, num = errors.shape
    if rule not in RULES:
        raise InputError(f"choose got rule={rule!r}; rule is one of {', '.join(RULES)}.")
    if len(lams) != num or (densities is not None and len(densities) != num) or num == 0:
        raise InputError(
            f"choose got errors of {num} candidates, {len(lams)} lams"
            + (f" and {len(densities)} densities" if densities is not None else "")
            + "; give one column, lam and density a candidate."
        )
    if weights is not None and (len(weights) != num_folds or min(weights, default=0) <= 0):
        raise InputError(
            f"choose got weights={list(weights)} for {num_folds} folds; give a number > 0 a fold."
        )


def _shared(errors: np.ndarray, least: int) -> tuple[list[int], list[int]]:
    """Return the folds and candidates that are judged: a table without gaps."""
    missing = np.isnan(errors)
    gaps = missing.sum(0)
    kept = [k for k in range(errors.shape[1]) if 2 * gaps[k] <= len(errors)]
    folds = _complete(missing, kept)
    while len(folds) < least and gaps[kept].any():
        kept.remove(max(kept, key=lambda k: gaps[k]))
        folds = _complete(missing, kept)
    if not kept or len(folds) < least:
        raise InputError(
            f"choose needs results of some candidate on {least} fold(s) or more, and of the "
            f"{errors.size} jobs {int(missing.sum())} have none ({len(errors)} folds). Run the "
            "failed jobs again, use more folds, or rule=min, which takes one."
        )
    return folds, kept


def _complete(missing: np.ndarray, candidates: Sequence[int]) -> list[int]:
    return [i for i in range(len(missing)) if not missing[i, list(candidates)].any()]


def _moments(table: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weighted means over folds and their standard errors, NaN of a single fold."""
    means = share @ table
    with np.errstate(invalid="ignore", divide="ignore"):
        return means, np.sqrt(share @ (table - means) ** 2 / np.float64(len(table) - 1))


def _strength(
    place: int, lams: Sequence[float | int], densities: Sequence[float | int] | None
) -> tuple[float, float]:
    """Return what is least for the strongest candidate."""
    return (0.0 if densities is None else densities[place], -lams[place])


def _placed(values: np.ndarray, candidates: Sequence[int], num: int) -> tuple[float | None, ...]:
    """Return a number a candidate, None of those that have none."""
    found = dict(zip(candidates, values.tolist(), strict=True))
    return tuple(None if np.isnan(found.get(k, np.nan)) else found[k] for k in range(num))


def _grounds(
    rule: str, lams: Sequence[float | int], best: int, chosen: int, mean: float, limit: float
) -> list[str]:
    least = f"The least mean error is {mean:.4g}, at lam={lams[best]:g}."
    if rule == "min":
        return [least, "It is chosen (rule: min)."]
    if chosen == best:
        return [least, f"No stronger candidate is within one standard error of it ({limit:.4g})."]
    return [
        least,
        f"lam={lams[chosen]:g} is the strongest candidate within one standard error of it "
        f"({limit:.4g}): as good as the best as far as these folds can tell, and simpler.",
    ]


def _gaps(
    errors: np.ndarray, folds: Sequence[int], candidates: Sequence[int], lams: Sequence[float | int]
) -> list[str]:
    said = []
    if dropped := [k for k in range(errors.shape[1]) if k not in candidates]:
        names = ", ".join(f"lam={lams[k]:g}" for k in dropped)
        said.append(f"Not judged, for lack of results: {names}.")
    if len(folds) < len(errors):
        said.append(f"Judged on the {len(folds)} of {len(errors)} folds that all others have.")
    return said


def _ends(
    lams: Sequence[float | int], candidates: Sequence[int], best: int, chosen: int
) -> list[str]:
    judged = [lams[k] for k in candidates]
    if len(set(judged)) < 2:
        return []
    if lams[best] == min(judged):
        return ["The best lies at the weak end of the grid: a weaker strength may be better still."]
    if lams[chosen] == max(judged):
        return ["The choice lies at the strong end of the grid: try stronger ones."]
    return []
