"""Shrinking: equal outputs, by hand and on torchvision's nets, and what has to stay."""

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torchvision.models.video import r3d_18
from torchvision.ops import MLP

import regkit
from regkit.errors import InputError
from regkit.models.cnn_gru import CnnGru
from regkit.models.cnn_lstm import CnnLstm
from regkit.models.mvit_v2_s import MViTV2S
from regkit.models.tiny3d import Tiny3D
from regkit.structure.coupling import couple

CLIP = (1, 3, 4, 16, 16)


def filters(*shapes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, shapes[0], 3), nn.BatchNorm2d(shapes[0]), nn.ReLU())


def livened(model: nn.Module) -> nn.Module:
    """Give norms statistics, scales and shifts of their own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1.0, 1.0)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def kill(parameter: torch.Tensor, count: int) -> None:
    with torch.no_grad():
        parameter[:count] = 0


def check_equal(model: nn.Module, small: nn.Module, clip: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(small(clip), model(clip), rtol=1e-5, atol=1e-5)


def test_the_model_itself_stays_as_it_is():
    model = livened(Tiny3D(num_classes=3))
    kill(model.features[1][0].weight, 20)
    before = copy.deepcopy(model.state_dict())
    regkit.shrink(model, torch.randn(CLIP), timed=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("shift", [-3.0, 0.0])
def test_a_constant_that_relu_makes_zero_is_cut(shift: float):
    model = livened(Tiny3D(num_classes=3))
    kill(model.features[0][0].weight, 5)
    with torch.no_grad():
        model.features[0][1].running_mean[:5] = 0
        model.features[0][1].bias[:5] = shift
    small, _ = regkit.shrink(model, torch.randn(CLIP), timed=False)
    assert small.features[0][0].out_channels == 11
    check_equal(model, small, torch.randn(2, *CLIP[1:]))


def test_a_constant_above_zero_stays_before_zero_padding_and_is_counted():
    model = livened(Tiny3D(num_classes=3))
    kill(model.features[0][0].weight, 5)
    with torch.no_grad():
        model.features[0][1].running_mean[:5] = 0
        model.features[0][1].bias[:5] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    _, report = regkit.shrink(model, torch.randn(CLIP), timed=False)
    assert report.channels["features.0.0"] == (14, 16)
    assert any("features.0.0: 3 emit a constant" in n for n in report.notes)


@pytest.mark.parametrize(
    ("padding", "mode", "left"),
    [
        (0, "zeros", 3),
        (1, "zeros", 8),
        (1, "replicate", 3),
        (1, "reflect", 3),
        ("valid", "zeros", 3),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_folds_where_no_zeros_are_padded(padding, mode: str, left: int, bias: bool):
    model = nn.Sequential(
        *filters(8),
        nn.Conv2d(8, 4, 3, padding=padding, padding_mode=mode, bias=bias),
        nn.BatchNorm2d(4),
    )
    livened(model)
    kill(model[0].weight, 5)
    with torch.no_grad():
        model[1].bias[:5] = 2.0
    small, _ = regkit.shrink(model, torch.randn(1, 3, 12, 12), timed=False)
    assert small[0].out_channels == left
    check_equal(model, small, torch.randn(2, 3, 12, 12))


def test_constants_fold_through_a_grid_into_a_linear_layer_and_on():
    """A whole dead layer: what it emits goes from bias to bias, one channel of each stays."""
    model = nn.Sequential(
        *filters(6),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Sigmoid(),
        nn.Linear(5, 2),
    )
    livened(model)
    kill(model[0].weight, 6)
    with torch.no_grad():
        model[1].bias.fill_(1.0)
    small, _ = regkit.shrink(model, torch.randn(1, 3, 8, 8), timed=False)
    assert (small[0].out_channels, small[5].out_features) == (1, 1)
    check_equal(model, small, torch.randn(3, 3, 8, 8))


def test_constants_fold_into_a_recurrent_layer():
    model = CnnGru(num_classes=3).eval()
    kill(model.encoder.project.weight, 40)
    small, _ = regkit.shrink(model, torch.randn(CLIP), timed=False)
    assert small.rnn.input_size == 24
    check_equal(model, small, torch.randn(2, *CLIP[1:]))


class Unbiased(nn.Module):
    """A recurrent layer that has no bias to take a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(4, 8), nn.GRU(8, 3, bias=False, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.first(x))[0]


def test_constants_stay_before_a_recurrent_layer_without_biases():
    model = Unbiased().eval()
    kill(model.first.weight, 5)
    small, report = regkit.shrink(model, torch.randn(1, 6, 4), timed=False)
    assert small.first.out_features == 8
    assert any("where no layer can take these" in note for note in report.notes)


@pytest.mark.parametrize("cls", [CnnGru, CnnLstm])
def test_hidden_units_go(cls: type):
    model = cls(num_classes=3, num_layers=2, bidirectional=True).eval()
    coupling = couple(model, torch.randn(CLIP))
    for c in coupling.channels:
        if c.name.startswith("rnn."):
            for piece in c.writers:
                kill(piece.view(piece.parameter.detach()), 20)
    small, _ = regkit.shrink(model, torch.randn(CLIP), timed=False)
    assert small.rnn.hidden_size == 44
    check_equal(model, small, torch.randn(2, *CLIP[1:]))


@pytest.mark.slow
def test_a_channel_that_is_zero_in_one_partner_only_stays_and_is_counted():
    model = livened(r3d_18(num_classes=3))
    kill(model.layer1[0].conv2[0].weight, 7)
    small, report = regkit.shrink(model, torch.randn(1, 3, 4, 32, 32), timed=False)
    assert small.layer1[0].conv2[0].out_channels == 64
    assert any("7 are zero in some of the" in note for note in report.notes)


class Pair(nn.Module):
    """Two layers write the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + self.second(x))


def test_channels_that_are_constant_or_gone_are_not_counted_as_zero_in_one_partner_only():
    model = Pair().eval()
    kill(model.first.weight, 4)
    kill(model.second.weight, 1)  # a constant, which the padding keeps
    with torch.no_grad():
        model.last.weight[:, 1] = 0
    small, report = regkit.shrink(model, torch.randn(1, 3, 6, 6), timed=False)
    assert small.first.out_channels == 7
    assert any("2 are zero in some of the 2 weights" in note for note in report.notes)


@pytest.mark.slow
def test_a_dead_branch_of_a_residual_net_keeps_one_channel():
    model = livened(r3d_18(num_classes=3))
    for parameter in model.layer2[1].conv1.parameters():
        kill(parameter, len(parameter))
    small, _ = regkit.shrink(model, torch.randn(1, 3, 4, 32, 32), timed=False)
    assert small.layer2[1].conv1[0].out_channels == 1
    check_equal(model, small, torch.randn(2, 3, 4, 32, 32))


def test_depthwise_channels_go_with_theirs_and_grouped_ones_with_those_in_their_place():
    model = nn.Sequential(
        *filters(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )
    livened(model)
    kill(model[0].weight, 5)
    kill(model[6].weight, 7)
    kill(model[6].bias, 7)
    small, _ = regkit.shrink(model, torch.randn(1, 3, 16, 16), timed=False)
    assert (small[0].out_channels, small[3].groups) == (3, 3)
    assert (small[6].out_channels, small[8].groups) == (2, 2)  # the one that lives, and its twin
    check_equal(model, small, torch.randn(2, 3, 16, 16))


class Gap(nn.Module):
    """Average pooling whose padding counts: a constant falls off at the borders."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *filters(6), nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(6, 2, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_constant_that_falls_off_at_the_borders_stays():
    model = livened(Gap())
    kill(model.net[0].weight, 2)
    with torch.no_grad():
        model.net[1].bias[:2] = 3.0
    small, report = regkit.shrink(model, torch.randn(1, 3, 8, 8), timed=False)
    assert small.net[0].out_channels == 6
    assert any("differ from place to place" in note for note in report.notes)


@pytest.mark.slow
def test_heads_of_mvit_go_where_nothing_reads_them():
    model = MViTV2S(num_classes=3).eval()
    blocks = model.net.blocks
    attention: Any = blocks[14].attn
    with torch.no_grad():
        attention.project[0].weight[:, : 3 * attention.head_dim] = 0
        blocks[3].mlp[3].weight[:, :100] = 0
    clip = torch.randn(1, 3, 4, 32, 32)
    small, _ = regkit.shrink(model, clip, timed=False)
    assert small.net.blocks[14].attn.num_heads == attention.num_heads - 3
    assert small.net.blocks[3].mlp[0].out_features == blocks[3].mlp[0].out_features - 100


def test_heads_of_other_layers_stay_with_the_reason():
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.mlp = MLP(8, [16, 3])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(x + self.attention(x, x, x)[0])

    model = Attends()
    with torch.no_grad():
        model.attention.out_proj.weight[:, :4] = 0
    _, report = regkit.shrink(model, torch.randn(1, 5, 8), timed=False)
    told = "attention finds the size of a head from its number of heads"
    assert any(told in note for note in report.notes)


def test_a_lightning_module_that_was_trained():
    class Clip(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = livened(Tiny3D(num_classes=3))

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            return self.net(clip)

    model = Clip()
    model._trainer = pl.Trainer(logger=False, barebones=True)  # type: ignore[assignment]
    model._fabric = Fabric(accelerator="cpu", devices=1)
    kill(model.net.features[2][0].weight, 60)
    with torch.no_grad():
        model.net.features[2][1].bias[:60] = -9.0
    small, _ = regkit.shrink(model, torch.randn(CLIP), timed=False)
    assert small.net.features[2][0].out_channels == 4
    assert small._trainer is None
    assert small._fabric is None
    assert isinstance(small, Clip)
    assert model._trainer is not None


def test_the_report_tells_sizes_and_time():
    model = livened(Tiny3D(num_classes=3))
    _, report = regkit.shrink(model, torch.randn(CLIP))
    assert report.after.parameters == report.before.parameters
    assert report.before.bytes > 4 * report.before.parameters  # and the buffers
    assert report.after.latency_s is not None
    assert report.after.latency_s.median > 0
    assert report.max_difference == 0.0
    for word in ("parameters", "MiB", "FLOPs", "latency", "difference"):
        assert word in str(report)


class Restless(nn.Module):
    """Its outputs move from run to run."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.runs = Tiny3D(num_classes=3), 0

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.net(clip) + self.runs


def test_unequal_outputs_are_refused():
    with pytest.raises(InputError, match="outputs differ by"):
        regkit.shrink(Restless(), torch.randn(CLIP), inputs=[torch.randn(CLIP)] * 3)
    with pytest.raises(InputError, match="tolerance=0"):
        regkit.shrink(Tiny3D(num_classes=3), torch.randn(CLIP), tolerance=0.0)


def test_real_inputs_are_compared_too():
    model = livened(Tiny3D(num_classes=3))
    _, report = regkit.shrink(
        model, torch.randn(CLIP), inputs=[torch.randn(2, *CLIP[1:])], timed=False
    )
    assert report.num_inputs == 5
