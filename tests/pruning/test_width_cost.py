"""The cost of widths: against nets that are really cut, and clocks that are planted."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

from regkit import InputError
from regkit.pruning import width_cost
from regkit.pruning.counts import num_flops, num_parameters
from regkit.pruning.remove import remove
from regkit.pruning.width_cost import WidthCost, flops_cost, latency_cost, parameters_cost
from regkit.structure.coupling import couple
from regkit.timing import Quartiles

CLIP = torch.zeros(1, 3, 2, 8, 8)


class Mixed(nn.Module):
    """A skip, a depthwise layer, a concatenation, and two recurrent layers in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.inner = nn.Conv3d(6, 6, 3, padding=1)
        self.deep = nn.Conv3d(6, 6, 3, padding=1, groups=6)
        self.side = nn.Conv3d(6, 5, 1)
        self.last = nn.Conv3d(11, 4, (1, 8, 8))
        self.rnn = nn.GRU(4, 7, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner(x))
        x = torch.cat([torch.relu(self.deep(x)), torch.relu(self.side(x))], dim=1)
        x = torch.relu(self.last(x)).flatten(2).mT
        return self.head(self.rnn(x)[0][:, -1])


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, Any, dict[str, WidthCost]]:
    torch.manual_seed(0)
    model = Mixed().eval()
    coupling = couple(model, CLIP)
    kinds = {"flops": flops_cost, "parameters": parameters_cost}
    return model, coupling, {kind: of(model, CLIP, coupling) for kind, of in kinds.items()}


@pytest.mark.parametrize("kind", ["flops", "parameters"])
def test_counts_are_those_of_a_net_that_is_cut(mixed: Any, kind: str):
    model, coupling, costs = mixed
    cost = costs[kind]
    assert any(c.together for c in coupling.channels)
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        share = torch.rand((), generator=draw)
        dead = {c.name: torch.rand(c.num_groups, generator=draw) < share for c in coupling.channels}
        small = remove(model, coupling, dead)
        left = num_flops(small, CLIP) if kind == "flops" else num_parameters(small)
        widths = {name: int((~mask).sum()) for name, mask in dead.items()}
        assert round(cost.share(widths) * cost.whole) == left
        assert cost.share(widths) * cost.whole == pytest.approx(left, abs=1e-3)
    assert cost.share({}) == pytest.approx(1.0, abs=1e-12)


def test_what_one_channel_costs(mixed: Any):
    """Of the side branch, 1 x 1 from 6 channels, read by 4 filters of 1 x 8 x 8; by hand."""
    cost = mixed[2]["flops"]
    written, read = 2 * 2 * 8 * 8 * 6, 2 * 2 * 4 * 8 * 8
    assert cost.channel_costs()["side"] * cost.whole == pytest.approx(written + read)


def test_what_is_no_product_of_two_widths_is_refused(mixed: Any, monkeypatch: pytest.MonkeyPatch):
    model, coupling, _ = mixed
    monkeypatch.setattr(width_cost, "num_flops", lambda net, x: 8 + net.side.out_channels**3)
    with pytest.raises(InputError, match="Mixed: its FLOPs are no sum of products of two widths"):
        flops_cost(model, CLIP, coupling)


def cost_of(multiple_of: int = 1) -> WidthCost:
    terms = (((), 0.1), ((0,), 0.2), ((0, 1), 0.5), ((1, 1), 0.2))
    return WidthCost((("a",), ("b", "c")), (10, 20), terms, 1.0, multiple_of=multiple_of)


def test_a_cost_by_hand():
    assert cost_of().share({"a": 5, "b": 10}) == pytest.approx(0.1 + 0.2 / 2 + 0.5 / 2 + 0.2)
    halves = cost_of().share({"a": 5, "b": 10, "c": 9})
    assert halves == pytest.approx(0.1 + 0.2 / 2 + 0.5 / 4 + 0.2 / 4)
    assert cost_of().share({"a": 0}) == cost_of().share({"a": 1})
    assert cost_of(4).share({"a": 5, "b": 9, "c": 12}) == cost_of().share({"a": 8, "b": 12, "c": 1})
    assert cost_of(4).share({"a": 9}) == cost_of().share({"a": 10})


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.9])
@pytest.mark.parametrize("multiple_of", [1, 2, 4])
def test_even_widths_cost_what_they_may(share: float, multiple_of: int):
    cost = cost_of(multiple_of)
    widths = cost.even_widths(share, ["a", "b", "c"])
    assert widths["b"] == widths["c"]
    assert all(n % multiple_of == 0 or n in (10, 20) for n in widths.values())
    step = 2 * multiple_of * max(cost.channel_costs().values())
    assert cost.share(widths) == pytest.approx(share, abs=step)
    assert abs(widths["a"] / 10 - widths["b"] / 20) <= multiple_of / 10 + 1e-9


def planted(monkeypatch: pytest.MonkeyPatch, noise: float = 0.0) -> None:
    """A clock that tells 3 s, and 1 ms for each parameter."""
    draw = torch.Generator().manual_seed(0)

    def clock(models: Mapping[str, Any], example: Any, budget_s: float = 4.0) -> Any:
        times = {
            name: (3.0 + 1e-3 * num_parameters(model))
            * (1 + noise * float(torch.rand((), generator=draw)))
            for name, model in models.items()
        }
        return {name: Quartiles(time, time, time) for name, time in times.items()}

    monkeypatch.setattr(width_cost, "latency", clock)


def test_a_planted_latency_is_found(mixed: Any, monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch)
    model, coupling, costs = mixed
    count, cost = costs["parameters"], latency_cost(model, CLIP, coupling)
    assert cost.whole == pytest.approx(3.0 + 1e-3 * count.whole)
    widths = {c.name: 2 for c in coupling.channels}
    expected = (3.0 + 1e-3 * count.whole * count.share(widths)) / cost.whole
    assert cost.share(widths) == pytest.approx(expected, rel=1e-2)
    assert cost.error < 1e-2


def test_a_noisy_latency_never_falls_with_a_width(mixed: Any, monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch, noise=0.5)
    model, coupling, _ = mixed
    cost = latency_cost(model, CLIP, coupling)
    assert cost.error > 0.01
    assert cost.share({}) == pytest.approx(1.0)
    assert all(factor >= 0 for _, factor in cost.terms)


@pytest.mark.parametrize("seed", range(8))
def test_the_fit_is_the_least_squares_of_no_negative_terms(seed: int):
    draw = np.random.default_rng(seed)
    matrix, wanted = draw.uniform(0, 1, (9, 6)), draw.normal(1, 1, 9)
    expected, _ = scipy.optimize.nnls(matrix, wanted)
    np.testing.assert_allclose(width_cost._non_negative(matrix, wanted), expected, atol=1e-9)
