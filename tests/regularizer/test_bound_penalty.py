"""Penalties bound to a model: which groups they act on, and why not on others."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.utils import parametrizations

from regkit import InputError, Regularizer, remaining
from regkit.models.cnn_gru import CnnGru
from regkit.models.tiny3d import Tiny3D
from regkit.penalties import L1, GroupLasso, NMSparsity, TemporalKernel

CLIP = torch.zeros(1, 3, 8, 16, 16)


def bound(model: nn.Module, penalty: Any, **options: Any) -> dict[str, list[str]]:
    """Return the parameters of each group set by its name."""
    term = Regularizer(model, penalty, **options).bound["group_lasso"]
    return {
        b.name: sorted(p.name for p in b.pieces) for b in (part.group_set for part in term.parts)
    }


def stepped(model: nn.Module, reg: Regularizer, lr: float = 1.0) -> None:
    """Take one step along zero gradients: nothing moves but by the penalty."""
    optimizer = optim.SGD(model.parameters(), lr=lr)
    reg.attach(optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def test_channels_are_taken_whole_with_what_belongs_to_them():
    found = bound(Tiny3D(num_classes=4), GroupLasso(1.0, groups="channel"), example=CLIP)
    assert set(found) == {"features.0.0", "features.1.0", "features.2.0"}
    assert found["features.1.0"] == [
        "features.1.0.weight", "features.1.1.bias", "features.1.1.weight"]  # fmt: skip


def test_readers_are_the_next_layers():
    found = bound(Tiny3D(num_classes=4), GroupLasso(1.0, groups="channel_inputs"), example=CLIP)
    assert found["features.0.0"] == ["features.1.0.weight"]
    assert found["features.2.0"] == ["head.1.weight"]


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ("features.1", {"features.1.0"}),
        ("!features.1", {"features.0.0", "features.2.0"}),
        (nn.Conv3d, {"features.0.0", "features.1.0", "features.2.0"}),
    ],
)
def test_on_chooses_channels_by_their_weights(on: Any, names: set[str]):
    penalty = GroupLasso(1.0, groups="channel", params=on)
    assert set(bound(Tiny3D(num_classes=4), penalty, example=CLIP)) == names


class Sum(nn.Module):
    """Two layers whose channels are added, and so live and die together."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(3, 6, 1), nn.Conv3d(3, 6, 1)
        self.last = nn.Conv3d(6, 2, 1)

    def forward(self, clip: Tensor) -> Tensor:
        return self.last((self.one(clip) + self.two(clip)).relu())


def test_a_coupled_set_is_in_by_one_of_its_weights_and_out_by_one():
    def names(on: Any) -> list[list[str]]:
        penalty = GroupLasso(1.0, groups="channel", params=on)
        return list(bound(Sum(), penalty, example=CLIP).values())

    together = ["one.bias", "one.weight", "two.bias", "two.weight"]
    assert names(()) == names("one") == [together]
    with pytest.raises(InputError, match="left out by !two"):
        names(["one", "!two"])


def test_frozen_parameters_wait_until_they_are_trained():
    """Of the groups of a channel the frozen norm is no part; of the group set it is, for later."""
    model = Tiny3D(num_classes=4)
    model.features[0][1].requires_grad_(False)
    reg = Regularizer(model, GroupLasso(1.0, groups="channel"), example=CLIP)

    def acting() -> dict[str, list[str]]:
        parts = reg.bound["group_lasso"].trained_parts()
        return {p.group_set.name: sorted(piece.name for piece in p.group_set.pieces) for p in parts}

    assert acting()["features.0.0"] == ["features.0.0.weight"]
    model.features[0].requires_grad_(False)
    assert set(acting()) == {"features.1.0", "features.2.0"}
    model.features[0].requires_grad_(True)
    together = [f"features.0.{name}" for name in ("0.weight", "1.bias", "1.weight")]
    assert acting()["features.0.0"] == together


def test_zero_channels_can_be_removed():
    """A strength that kills some channels of each layer: that many are gone."""
    torch.manual_seed(1)
    model = Tiny3D(num_classes=4)
    reg = Regularizer(model, GroupLasso(0.5, groups="channel"), example=CLIP)
    for group_set in (part.group_set for part in reg.bound["group_lasso"].parts):
        scale = torch.linspace(0.05, 4.0, group_set.num_groups)[:, None]
        with torch.no_grad():
            lengths = group_set.rows().norm(dim=1, keepdim=True)
            group_set.write(group_set.rows() / lengths * scale * group_set.size**0.5)
    stepped(model, reg)
    live, count = reg.live_groups()["group_lasso"]
    left = remaining(model, CLIP)
    assert 0 < live < count == 112
    assert sum(n for n, _ in left.channels.values()) == live
    assert left.parameters < left.all_parameters
    assert left.flops < left.all_flops
    expected = 0.5 * sum(
        (group_set.rows().norm(dim=1) * group_set.size**0.5).sum()
        for group_set in (part.group_set for part in reg.bound["group_lasso"].parts)
    )
    torch.testing.assert_close(reg.value(), expected)


def test_an_example_is_asked_for_and_found():
    model = Tiny3D(num_classes=4)
    with pytest.raises(InputError, match="groups='channel', which are found by running the model"):
        Regularizer(model, GroupLasso(1.0, groups="channel"))
    model.example_input_array = CLIP
    assert len(bound(model, GroupLasso(1.0, groups="channel"))) == 3
    with pytest.raises(InputError, match="couple"):
        bound(model, GroupLasso(1.0, groups="channel"), example=torch.zeros(1, 2))


def test_a_hidden_unit_dies_with_all_its_gates():
    model = CnnGru(num_classes=3, hidden_size=8)
    reg = Regularizer(model, GroupLasso(0.2, groups="hidden_unit"))
    before = model.rnn.weight_ih_l0.detach().clone()
    with torch.no_grad():
        for p in model.rnn.parameters():
            p.view(3, 8, -1)[:, 2] *= 1e-3
    stepped(model, reg)
    zero = torch.zeros(8, dtype=torch.bool)
    for p in model.rnn.parameters():
        dead = (p.detach().view(3, 8, -1) == 0).all(2)
        assert (dead == dead[0]).all()
        zero = dead[0] if not zero.any() else zero & dead[0]
    assert zero[2]
    assert not zero.all()
    assert not torch.equal(before, model.rnn.weight_ih_l0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, frames: Tensor) -> Tensor:
        return self.mix(frames, frames, frames)[0]


def test_an_attention_head_dies_whole():
    model = Attention()
    with torch.no_grad():
        model.mix.in_proj_weight.view(3, 4, 2, 8)[:, 1] *= 1e-3
        model.mix.in_proj_bias.view(3, 4, 2)[:, 1] *= 1e-3
        model.mix.out_proj.weight.view(8, 4, 2)[:, 1] *= 1e-3
    stepped(model, Regularizer(model, GroupLasso(0.05, groups="head")))
    assert (model.mix.in_proj_weight.view(3, 4, 2, 8)[:, 1] == 0).all()
    assert (model.mix.out_proj.weight.view(8, 4, 2)[:, 1] == 0).all()
    assert (model.mix.in_proj_weight.view(3, 4, 2, 8)[:, 0] != 0).all()


@pytest.mark.parametrize("groups", ["time_tap", "hidden_unit", "head", "kernel"])
def test_a_model_without_such_groups_is_told_so(groups: str):
    with pytest.raises(InputError, match=f"got groups='{groups}', and Linear has none among"):
        Regularizer(nn.Linear(3, 2), GroupLasso(1.0, groups=groups))


def test_groups_that_a_layer_has_not_are_left_to_the_others():
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    reg = Regularizer(model, [TemporalKernel(1.0), NMSparsity(1.0, params="2")])
    assert list(reg.named_parameters("temporal_kernel")) == ["0.weight"]
    assert "72 groups (time)" in reg.summary()
    alone = Regularizer(model, TemporalKernel(1.0)).summary()
    assert "- (is no 3-D convolution)" in alone


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ((), ["0.weight"]),
        ("Linear", ["0.weight"]),
        (nn.Linear, ["0.weight"]),
        (["0", "2"], ["0.weight", "2.weight"]),
    ],
)
def test_rows_of_the_output_layer_are_left_out_unless_named(on: Any, names: list[str]):
    """They are classes, and one that is gone can never be predicted."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    reg = Regularizer(model, GroupLasso(1.0, params=on))
    assert list(reg.named_parameters()) == names
    assert [part.group_set.name for part in reg.bound["group_lasso"].parts] == names
    assert ("rows of the output layer, which are classes" in reg.summary()) == (len(names) < 2)
    whole = Regularizer(model, [L1(1.0), GroupLasso(1.0, groups="in_channel")])
    assert len(whole.penalised()) == 2


def test_a_single_layer_keeps_its_rows():
    model = nn.Sequential(nn.Linear(3, 4))
    assert list(Regularizer(model, GroupLasso(1.0)).named_parameters()) == ["0.weight"]


def test_weight_norm_is_refused_with_a_way_out():
    """Its length per filter carries the filter: L1 on it removes filters exactly."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)))
    with pytest.raises(InputError, match=r"parametrized.*original0.*L1 on it is the group lasso"):
        Regularizer(model, GroupLasso(1.0))
    magnitude = model[0].parametrizations.weight.original0
    with torch.no_grad():
        magnitude[1] = 0.01
    stepped(model, Regularizer(model, L1(0.1, params="*.original0")), lr=0.5)
    assert (model[0].weight[1] == 0).all()
    assert (model[0].weight[0] != 0).all()


def test_a_tied_weight_moves_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    model[0].weight.data.fill_(1.0)
    reg = Regularizer(model, GroupLasso(0.1))
    stepped(model, reg)
    # Each row has length sqrt(3), and loses 0.1 sqrt(3).
    torch.testing.assert_close(model[0].weight.detach(), torch.full((3, 3), 0.9).double())
    assert float(reg.value()) == pytest.approx(0.1 * 3 * 3 * 0.9)
