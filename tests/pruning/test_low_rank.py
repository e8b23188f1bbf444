"""Layers of low rank become two, with equal outputs; what cannot is told."""

import pytest
import torch
from torch import nn

import regkit
from regkit.penalties import Nuclear
from regkit.pruning.low_rank import split_low_rank, weight_rank

# After a step that is not one of every third: the last takes the prox all the same.
END = regkit.Schedule(num_steps=41)


def lowered(layer: nn.Module, rank: int) -> nn.Module:
    """Give a layer this rank, by numpy's SVD in float64."""
    matrix = layer.weight.detach().double().flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values[rank:] = 0
    with torch.no_grad():
        layer.weight.copy_(((left * values) @ right).view_as(layer.weight))
    return layer


@pytest.mark.parametrize(
    ("layer", "clip"),
    [
        (nn.Linear(40, 30), (2, 40)),
        (nn.Linear(30, 40, bias=False), (2, 5, 30)),
        (nn.Conv1d(8, 16, 3, stride=2), (1, 8, 20)),
        (nn.Conv2d(8, 24, 3, padding=1, dilation=2, padding_mode="replicate"), (1, 8, 12, 12)),
        (nn.Conv3d(8, 24, (3, 1, 3), padding="same"), (1, 8, 4, 8, 8)),
    ],
)
def test_outputs_stay(layer: nn.Module, clip: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(lowered(layer, 5), nn.ReLU()).eval()
    _, report = regkit.shrink(net, torch.randn(clip), timed=False)
    assert report.ranks["0"][0] == 5
    assert report.after.flops < report.before.flops
    assert report.after.parameters < report.before.parameters
    assert report.max_difference <= 1e-5 * report.max_output
    assert type(net[0]) is type(layer)
    rest = regkit.remaining(net, torch.randn(clip))
    assert (rest.flops, rest.parameters) == (report.after.flops, report.after.parameters)
    assert rest.ranks == report.ranks
    assert "0, rank" in str(rest)


def test_what_does_not_pay_stays() -> None:
    net = nn.Sequential(lowered(nn.Linear(20, 20), 10))
    assert split_low_rank(net, torch.randn(1, 20), timed=False) == ({}, [])
    net = nn.Sequential(lowered(nn.Linear(20, 20), 9))
    assert split_low_rank(net, torch.randn(1, 20), timed=False)[0] == {"0": (9, 20)}


class ReadsItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)
        lowered(self.layer, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.layer.weight.T + self.layer(x)


def test_a_weight_that_others_read_stays_and_is_told() -> None:
    net = ReadsItsWeight()
    small, report = regkit.shrink(net, torch.randn(1, 20), timed=False)
    assert type(small.layer) is nn.Linear
    assert report.ranks == {}
    assert "layer has rank 2 and stays one layer (AttributeError" in report.notes[-1]


def test_tied_grouped_and_attention_layers_stay() -> None:
    tied = nn.Sequential(lowered(nn.Linear(20, 20), 2), nn.Linear(20, 20))
    tied[1].weight = tied[0].weight
    grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2))
    for net, x in ((tied, torch.randn(1, 20)), (grouped, torch.randn(1, 8, 5, 5))):
        assert split_low_rank(net, x, timed=False) == ({}, [])
    attention = nn.MultiheadAttention(32, 2)
    lowered(attention.out_proj, 2)
    x = torch.randn(3, 1, 32)
    assert split_low_rank(attention, [x, x, x], timed=False) == ({}, [])


@pytest.mark.parametrize("every", [1, 3])
def test_the_nuclear_norm_pays(every: int, tmp_path) -> None:
    """What training with it leaves is split, saved, and comes back into a new net."""
    torch.manual_seed(0)

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4)
        )

    net = make()
    clips, labels = torch.randn(16, 3, 4, 4, 4), torch.randint(4, (16,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    reg = regkit.Regularizer(net, Nuclear(lam=0.15, every=every, params="0"), schedule=END).attach(
        optimizer
    )
    for _ in range(41):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(clips), labels).backward()
        optimizer.step()
    rank = weight_rank(net[0].weight)
    assert rank < 13
    small, report = regkit.shrink(net, clips[:1], timed=False)
    assert report.ranks == {"0": (rank, 16)}
    regkit.save_shrunk(small, tmp_path / "small.pt", net)
    back = regkit.load_shrunk(make(), tmp_path / "small.pt").eval()
    with torch.no_grad():
        assert torch.equal(back(clips), small(clips))
    assert reg.value() > 0
