"""Error as bias and variance over the fits of one recipe, and what their average gains."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

EXACT_UP_TO = 10  # fits, of which all 2^10 subsets are averaged in seconds
NUM_ORDERS = 100  # of more fits than that
TOP = 5

Scores = Float[np.ndarray, "fits videos classes"]
Mean = Float[np.ndarray, "videos classes"]
Labels = Int[np.ndarray, " videos"]
PerFit = Float[np.ndarray, " fits"]


@dataclass(frozen=True)
class Brier:
    """Mean square error of probabilities, in two parts; the first is the ensemble's own error."""

    error: float
    bias: float
    variance: float


@dataclass(frozen=True)
class ZeroOne:
    """Share of wrong classes, in parts: error = bias + unbiased - biased.

    variance: how often a fit differs from the main class, over all videos.
    unbiased: of that, where the main class is right and to differ is wrong.
    biased: where the main class is wrong, and a fit that differs is right.
    """

    error: float
    bias: float
    variance: float
    unbiased: float
    biased: float


def brier(scores: Scores, label: Labels) -> Brier:
    """Split the Brier score.

    mean_i ||p_i - y||^2  =  ||pbar - y||^2  +  mean_i ||p_i - pbar||^2        (pbar = mean_i p_i)

    An identity, video by video; noise of the labels is in the bias. With k fits at hand the
    variance is on average (k-1)/k of that of the recipe, and what it lacks is in the bias.
    """
    target, mean = np.eye(scores.shape[2])[label], scores.mean(0)
    error = ((scores - target) ** 2).sum(2).mean()
    bias = ((mean - target) ** 2).sum(1).mean()
    variance = ((scores - mean) ** 2).sum(2).mean()
    return Brier(float(error), float(bias), float(variance))


def zero_one(scores: Scores, label: Labels) -> ZeroOne:
    """Split the share of wrong classes by the main class, which most fits predict.

    E[y_i != y]  =  B + (1 - B) P(y_i != m) - B P(y_i = y)        (m: main class, B = [m != y])

    Of equal numbers of votes, the class with the higher mean probability is the main one.
    Source: Domingos, A unified bias-variance decomposition, 2000, theorem 2, without noise.
    """
    predicted = scores.argmax(2)
    main = main_class(scores)
    wrong, differs, right = main != label, predicted != main, predicted == label
    return ZeroOne(
        error=float((~right).mean()),
        bias=float(wrong.mean()),
        variance=float(differs.mean()),
        unbiased=float((differs & ~wrong).mean()),
        biased=float((right & wrong).mean()),
    )


def main_class(scores: Scores) -> Labels:
    """Return what most fits predict."""
    votes = np.eye(scores.shape[2])[scores.argmax(2)].sum(0)
    return (votes + scores.mean(0) / 2).argmax(1)  # half a mean probability is less than a vote


def disagreement(scores: Scores) -> float:
    """Return how often two of the fits predict different classes."""
    num_fits, _, num_classes = scores.shape
    votes = np.eye(num_classes)[scores.argmax(2)].sum(0)
    agree = (votes * (votes - 1)).sum(1) / (num_fits * (num_fits - 1))
    return float(1 - agree.mean())


def accuracy(mean: Mean, label: Labels) -> float:
    """Return the share of videos whose class has the highest score."""
    return float((mean.argmax(1) == label).mean())


def accuracy_top5(mean: Mean, label: Labels) -> float | None:
    """Return the share of videos whose class is among the five highest; None up to 5 classes."""
    if mean.shape[1] <= TOP:
        return None
    own = np.take_along_axis(mean, label[:, None], 1)
    earlier = np.arange(mean.shape[1]) < label[:, None]
    before = (mean > own) | ((mean == own) & earlier)  # of equals the first, as argmax
    return float((before.sum(1) < TOP).mean())


def accuracy_by_number(scores: Scores, label: Labels) -> tuple[PerFit, PerFit]:
    """Return mean and standard deviation of the accuracy of 1, 2, ... averaged fits.

    Over all subsets of that number; of more than 10 fits, over 100 orders of them.
    """
    num_fits = len(scores)
    found: list[list[float]] = [[] for _ in range(num_fits)]
    if num_fits <= EXACT_UP_TO:
        for size in range(1, num_fits + 1):
            for chosen in combinations(range(num_fits), size):
                found[size - 1].append(accuracy(scores[list(chosen)].sum(0), label))
    else:
        rng = np.random.default_rng(0)
        for _ in range(NUM_ORDERS):
            total = np.zeros(scores.shape[1:])
            for size, fit in enumerate(rng.permutation(num_fits)):
                total += scores[fit]
                found[size].append(accuracy(total, label))
    return np.array([np.mean(row) for row in found]), np.array([np.std(row) for row in found])
