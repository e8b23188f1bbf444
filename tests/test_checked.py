"""Types and shapes in signatures are checked while testing: see checked.py."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from regkit.baseline.solver import Fitted, lam_max
from regkit.training.overrides import quote_paths

X, Y = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: quote_paths(1),
        lambda: lam_max(X, Y, "two"),
        lambda: lam_max(X.float(), Y, 2),
        lambda: lam_max(X, Y[:3], 2),
        lambda: Fitted(X, X[:2, 0]),
        lambda: Fitted(X, X[:, 0]).probabilities(Y),
    ],
)
def test_what_a_signature_forbids_is_refused(wrong: Callable[[], object]):
    with pytest.raises(TypeCheckError):
        wrong()
