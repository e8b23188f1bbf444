"""Who takes part: all start alike, and each trains as its name says."""

from pathlib import Path

import pytest
import torch
from torch import nn

import regkit.penalties
from regkit.benchmarks.step import candidates
from regkit.benchmarks.step.candidates import (
    FOREACH,
    FUSED,
    LR,
    NAIVE,
    NAIVE_ITEM,
    REGULARIZED,
    Contestant,
    baselines,
    draw_gradients,
    make_penalties,
    naive,
    penalised,
    penalty_types,
)
from regkit.penalties import ActivationPenalty, Box, GroupPenalty
from regkit.timing import take_turns

CONFIGS = Path(__file__).parents[3] / "configs" / "penalty"


def tiny() -> nn.Module:
    return candidates.make_net("synthetic", 1e4)


def clip() -> torch.Tensor:
    return torch.randn(2, 3, 4, 16, 16)


def weights(contestant: Contestant) -> list[torch.Tensor]:
    return [p.detach() for p in contestant.net.parameters()]


def equal(one: Contestant, other: Contestant) -> bool:
    return all(map(torch.equal, weights(one), weights(other)))


def steps(entrants: list[Contestant], number: int) -> None:
    take_turns(entrants, number, lambda c, _: c.step())


def test_all_weight_penalties_take_part():
    """Those of the configuration folder, which the package does not read."""
    exported = [getattr(regkit.penalties, name) for name in regkit.penalties.__all__]
    activation = {k.__module__.split(".")[-1] for k in exported if issubclass(k, ActivationPenalty)}
    yamls = {path.stem for path in CONFIGS.glob("*.yaml")} - {"none"}
    assert set(penalty_types()) == yamls - activation


def test_by_default_those_that_decompose_matrices_stay_out():
    made = make_penalties([], 1e-3, ["filter"])
    left = set(penalty_types()) - {name.split()[0] for name in made}
    assert left == {name for name, kind in penalty_types().items() if kind.joint}
    assert left
    assert {p.lam for p in made.values()} == {1e-3}


def test_groups_are_tried_in_every_way():
    made = make_penalties(["l1", "group_lasso"], 1e-3, ["in_channel", "kernel"])
    assert list(made) == ["l1", "group_lasso in_channel", "group_lasso kernel"]
    kinds = [p.groups for p in made.values() if isinstance(p, GroupPenalty)]
    assert kinds == ["in_channel", "kernel"]


def test_everyone_has_own_weights_and_the_same_gradients():
    net = tiny()
    gradients = draw_gradients(net)
    everyone = [
        *baselines(net, gradients),
        *naive(net, gradients, 1.0),
        *penalised(net, gradients, Box(1.0), clip()[:1]),
    ]
    assert [c.name for c in everyone] == [FUSED, FOREACH, NAIVE, NAIVE_ITEM, *REGULARIZED]
    for each in everyone:
        assert all(map(torch.equal, weights(each), net.parameters()))
        assert all(p.grad is g for p, g in zip(each.net.parameters(), gradients, strict=True))
    before = [g.clone() for g in gradients]
    places = {p.data_ptr() for c in everyone for p in weights(c)}
    assert len(places) == len(everyone) * len(gradients)
    steps(everyone, 2)
    assert all(map(torch.equal, gradients, before))


def test_plain_is_adamw():
    """Held against Loshchilov and Hutter's algorithm 2 in float64."""
    net = tiny()
    gradients = draw_gradients(net)
    entrants = baselines(net, gradients)
    steps(entrants, 5)
    for p, g, *found in zip(net.parameters(), gradients, *map(weights, entrants), strict=True):
        w, m, v = p.detach().double(), torch.zeros_like(g).double(), torch.zeros_like(g).double()
        for t in range(1, 6):
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g.double().square()
            w = w - LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        for weight in found:
            torch.testing.assert_close(weight.double(), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(penalty_types()))
def test_strength_zero_ends_as_plain_adamw_bit_for_bit(name: str):
    net = tiny()
    gradients = draw_gradients(net)
    (penalty,) = make_penalties([name], 0.0, ["filter"]).values()
    plain = baselines(net, gradients)[0]
    entrants = [plain, *penalised(net, gradients, penalty, clip()[:1])]
    steps(entrants, 4)
    assert not all(map(torch.equal, weights(plain), net.parameters()))
    assert equal(entrants[1], plain)
    for other in entrants[2:]:
        for found, expected in zip(weights(other), weights(plain), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_prox_that_runs_and_changes_nothing_ends_as_plain_adamw():
    """The step really has a prox behind it here, and all weights are within its bounds."""
    net = tiny()
    gradients = draw_gradients(net)
    plain = baselines(net, gradients)[0]
    hook = penalised(net, gradients, Box(1.0, -100.0, 100.0), clip()[:1])[0]
    tight = penalised(net, gradients, Box(1.0, -1e-3, 1e-3), clip()[:1])[0]
    steps([plain, hook, tight], 4)
    assert equal(plain, hook)
    limits = [p.abs().max() for p in weights(tight) if p.ndim == 5]
    assert limits == [pytest.approx(1e-3)] * len(limits)


@pytest.mark.parametrize("name", REGULARIZED)
def test_a_penalty_acts(name: str):
    net = tiny()
    (penalty,) = make_penalties(["l1"], 1e3, ["filter"]).values()
    entrants = penalised(net, draw_gradients(net), penalty, clip()[:1])
    (entrant,) = (c for c in entrants if c.name == name)
    entrant.step()
    assert all((p == 0).all() for p in weights(entrant) if p.ndim == 5)


def test_blogs_shrink_as_the_definition_says_and_count_the_zeros():
    net, lam = tiny(), 20.0
    gradients = draw_gradients(net)
    plain = baselines(net, gradients)[0]
    uncounted, counted = naive(net, gradients, lam)
    plain.step()
    expected = [nn.functional.softshrink(p, LR * lam) for p in weights(plain)]
    assert uncounted.step() == 0
    number = sum(int((p == 0).sum()) for p in expected)
    assert counted.step() == number > 100
    for entrant in (uncounted, counted):
        assert all(map(torch.equal, weights(entrant), expected))


def test_bytes_are_those_of_the_arrays_that_have_to_move():
    net = tiny()
    gradients = draw_gradients(net)
    every = sum(p.numel() for p in net.parameters())
    inside = [p.numel() for p in net.parameters() if p.ndim > 1]
    entrants = [*baselines(net, gradients), *naive(net, gradients, 1.0)]
    assert [c.num_bytes for c in entrants] == [every * b for b in (28, 28, 36, 40)]
    # Rows of the output layer, which are classes, are no groups.
    for name, extra, entries in (("l1", 8, sum(inside)), ("group_lasso", 12, sum(inside[:-1]))):
        (penalty,) = make_penalties([name], 1.0, ["filter"]).values()
        hook, prox = penalised(net, gradients, penalty, clip()[:1])
        assert hook.num_bytes == 28 * every + extra * entries
        assert prox.num_bytes == 28 * every  # one pass
