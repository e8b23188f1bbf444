"""What zeros and cuts have cost, beside its noise, by hand."""

import warnings

import pytest

from regkit.training.callbacks import CostOfZeros, cost_of, warn_of_a_cut


def quiet(whole: float, shrunk: float, num_videos: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_a_cut(whole, shrunk, num_videos)


def test_a_cut_that_costs_more_than_the_noise_of_the_test_warns():
    # sqrt((0.653 * 0.347 + 0.361 * 0.639) / 48) = 0.0976, of which 0.292 is three
    with pytest.warns(UserWarning, match=r"0\.653 before, 0\.361 after .*: 0\.098\)"):
        warn_of_a_cut(0.653, 0.361, 48)
    quiet(0.653, 0.361, 12)  # 0.195: not twice that
    quiet(0.653, 0.653, 10_000)
    quiet(0.361, 0.653, 48)  # better than before


def test_noise_is_that_of_two_shares():
    cost = cost_of(0.75, 0.5, 25)
    assert cost.accuracy == 0.25
    assert cost.noise == pytest.approx(((0.75 * 0.25 + 0.25) / 25) ** 0.5)
    assert cost.is_noise
    assert not cost_of(0.75, 0.5, 100).is_noise


def test_zeros_are_weighed_against_the_best_denser_net_of_the_run():
    watch = CostOfZeros(lambda: 1.0)
    watch.load_state_dict({"seen": [(1.0, 0.6), (0.9, 0.8), (0.34, 0.95), (0.3, 0.4)]})
    with pytest.warns(UserWarning, match=r"val/acc was 0\.800 at density 0\.90 and is 0\.400"):
        found = watch.cost(100)
    assert found == cost_of(0.8, 0.4, 100)  # 0.34 counts as no denser than 0.3
    watch.load_state_dict({"seen": [(0.31, 0.9), (0.3, 0.4)]})
    assert watch.cost(100) is None
