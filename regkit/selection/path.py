"""Fits along strengths, in any loop: a path with warm starts, and cross-validation along it."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

Fitted = TypeVar("Fitted")
Fold = TypeVar("Fold")


def path(
    lams: Sequence[float | int],
    fit: Callable[[float | int, Fitted | None], Fitted],
    start: Fitted | None = None,
) -> Iterator[tuple[float | int, Fitted]]:
    """Yield each strength with what was fitted at it, every fit starting from the one before.

    fit: gets a strength, and what to start from: `start` at first, then its own last result.
    """
    fitted = start
    for lam in lams:
        fitted = fit(lam, fitted)
        yield lam, fitted


def cross_validate(
    folds: Sequence[tuple[Fold, Fold]],
    lams: Sequence[float | int],
    fit: Callable[[float | int, Fold, Fitted | None], Fitted],
    error: Callable[[Fitted, Fold], float],
) -> Float[np.ndarray, "folds lams"]:
    """Return the error of each fold at each strength, for `choose`.

    Warm starts run along the strengths of one fold, never from fold to fold: what is held out stays
    unseen.

    folds: pairs of what to fit on and what is held out, such as indices.
    fit: gets a strength, what to fit on, and what to start from (None at first).
    error: gets what was fitted and what was held out.
    """
    errors = np.empty((len(folds), len(lams)))
    for row, (train, held) in enumerate(folds):

        def fit_here(lam: float | int, fitted: Fitted | None, train: Fold = train) -> Fitted:
            return fit(lam, train, fitted)

        for column, (_, fitted) in enumerate(path(lams, fit_here)):
            errors[row, column] = error(fitted, held)
    return errors
