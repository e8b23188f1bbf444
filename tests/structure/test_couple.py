"""Channels of the models in use: by hand which layers belong together, and by removing some."""

from collections.abc import Callable
from functools import cache, partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18, swin3d_t
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d

from regkit.models.cnn_gru import CnnGru
from regkit.models.cnn_lstm import CnnLstm
from regkit.models.s3d import S3D
from regkit.models.tiny3d import Tiny3D
from regkit.pruning.remove import remove
from regkit.structure.channels import Coupling
from regkit.structure.coupling import couple


def small_mvit() -> MViT:
    """Build an MViT of three blocks: pooled queries, pooled keys, and a change of width."""
    shapes = [(1, 32, 64, [1, 1, 1], [1, 4, 4]), (2, 64, 64, [1, 2, 2], [1, 2, 2])]
    shapes.append((2, 64, 64, [1, 1, 1], [1, 2, 2]))
    kernel = [3, 3, 3]
    blocks = [MSBlockConfig(h, a, b, kernel, kernel, q, kv) for h, a, b, q, kv in shapes]
    options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True}
    return MViT((32, 32), 8, blocks, proj_after_attn=True, num_classes=5, **options)


def narrow_swin() -> nn.Module:
    """Build a Swin that pads, shifts and merges."""
    return SwinTransformer3d([2, 4, 4], 24, [1, 2], [2, 4], [8, 7, 7], num_classes=5)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tiny3d": (partial(Tiny3D, num_classes=5), (8, 32, 32)),
    "cnn_gru": (partial(CnnGru, num_classes=5), (4, 32, 32)),
    "cnn_lstm": (partial(CnnLstm, num_classes=5), (4, 32, 32)),
    "cnn_gru_deep": (
        partial(CnnGru, num_classes=5, encoder="resnet18", num_layers=2, bidirectional=True),
        (2, 32, 32),
    ),
    "cnn_lstm_deep": (
        partial(CnnLstm, num_classes=5, num_layers=2, bidirectional=True),
        (4, 32, 32),
    ),
    "r3d_18": (partial(r3d_18, num_classes=5), (4, 16, 16)),
    "r2plus1d_18": (partial(r2plus1d_18, num_classes=5), (4, 16, 16)),
    "mc3_18": (partial(mc3_18, num_classes=5), (4, 16, 16)),
    "s3d": (partial(S3D, num_classes=5), (6, 32, 32)),
    "swin3d_t": (partial(swin3d_t, num_classes=5), (4, 32, 32)),
    "narrow_swin": (narrow_swin, (4, 32, 32)),
    "small_mvit": (small_mvit, (8, 32, 32)),
}

every_model = pytest.mark.parametrize("name", MODELS)


@cache
def built(name: str) -> tuple[nn.Module, Tensor, Coupling]:
    """Return a model that no test changes, an input, and its channels."""
    torch.manual_seed(0)
    make, size = MODELS[name]
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    clip = torch.randn(1, 3, *size)
    return model, clip, couple(model, clip)


def sets(name: str) -> dict[str, tuple[set[str], set[str]]]:
    """Return the names of what writes and of what reads, by set, as layers."""
    found = {}
    for c in built(name)[2].channels:
        sides = ({p.name.rpartition(".")[0] for p in side} for side in (c.writers, c.readers))
        found[c.name] = tuple(sides)
    return found


def random_half(coupling: Coupling) -> dict[str, Tensor]:
    dead = {c.name: torch.rand(c.num_groups) < 0.5 for c in coupling.channels}
    for mask in dead.values():
        mask[0], mask[-1] = True, False
    return dead


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["channel", "channel_inputs"])
@every_model
def test_what_is_zero_can_be_removed(name: str, kind: str):
    model, clip, coupling = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    group_sets = {b.name: b for b in coupling.group_sets(kind)}
    dead = {key: mask for key, mask in random_half(coupling).items() if key in group_sets}
    assert {
        c.name for c in coupling.channels if kind == "channel_inputs" or c.by_writers
    } == dead.keys()
    try:
        for key, mask in dead.items():
            rows = group_sets[key].rows()
            group_sets[key].write(rows.masked_fill(mask[:, None], 0))
        with torch.no_grad():
            whole, left = model(clip), remove(model, coupling, dead)(clip)
    finally:
        model.load_state_dict(before)
    with torch.no_grad():
        assert not torch.allclose(whole, model(clip), rtol=1e-3)
    assert whole.shape == left.shape
    assert float((whole - left).abs().max() / whole.abs().max()) < 1e-5


@every_model
def test_a_removed_channel_is_gone_from_every_tensor(name: str):
    """Each tensor has lost what the pieces of the set hold, by count."""
    model, _, coupling = built(name)
    dead = random_half(coupling)
    even = {c.together for c in coupling.channels} - {None}
    for layer in even:
        masks = [dead[c.name] for c in coupling.channels if c.together == layer]
        for mask in masks:
            mask.copy_(masks[0])
    small = remove(model, coupling, dead)
    marks = {key: torch.ones_like(p) for key, p in model.named_parameters()}
    for c in coupling.channels:
        for piece in (*c.writers, *c.readers):
            piece.view(marks[piece.name])[dead[c.name]] = 0
    for key, parameter in small.named_parameters():
        assert parameter.numel() == int(marks[key].sum()), key
        kept = dict(model.named_parameters())[key][marks[key].bool()]
        assert torch.equal(parameter.flatten(), kept), key


@every_model
def test_pieces_hold_the_parameters_themselves(name: str):
    model, _, coupling = built(name)
    own = dict(model.named_parameters())
    for kind in ("channel", "channel_inputs"):
        for group_set in coupling.group_sets(kind):
            assert all(own[piece.name] is piece.parameter for piece in group_set.pieces)
            assert {piece.view.num_groups for piece in group_set.pieces} == {group_set.num_groups}


def test_tiny3d_by_hand():
    assert sets("tiny3d") == {
        "features.0.0": ({"features.0.0", "features.0.1"}, {"features.1.0"}),
        "features.1.0": ({"features.1.0", "features.1.1"}, {"features.2.0"}),
        "features.2.0": ({"features.2.0", "features.2.1"}, {"head.1"}),
    }
    sizes = {
        c.name: (c.num_groups, c.group_set("channel").size) for c in built("tiny3d")[2].channels
    }
    # Filter (input channels times 27 taps), scale and shift.
    assert sizes == {
        "features.0.0": (16, 3 * 27 + 2),
        "features.1.0": (32, 16 * 27 + 2),
        "features.2.0": (64, 32 * 27 + 2),
    }


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18"])
def test_residual_streams_by_hand(name: str):
    expected = {
        "stem.0": (
            {"stem.0", "stem.1"}
            | {f"layer1.{block}.conv2.{part}" for block in (0, 1) for part in (0, 1)},
            {"layer1.0.conv1.0", "layer1.1.conv1.0", "layer2.0.conv1.0", "layer2.0.downsample.0"},
        )
    }
    for layer in (2, 3, 4):
        stage, after = f"layer{layer}", f"layer{layer + 1}"
        writers = {f"{stage}.{b}.conv2.{part}" for b in (0, 1) for part in (0, 1)}
        writers |= {f"{stage}.0.downsample.0", f"{stage}.0.downsample.1"}
        readers = {f"{after}.0.conv1.0", f"{after}.0.downsample.0"} if layer < 4 else {"fc"}
        expected[f"{stage}.0.conv2.0"] = (writers, readers | {f"{stage}.1.conv1.0"})
    for block in (f"layer{layer}.{b}" for layer in (1, 2, 3, 4) for b in (0, 1)):
        inner = f"{block}.conv1.0"
        expected[inner] = ({inner, f"{block}.conv1.1"}, {f"{block}.conv2.0"})
    assert sets(name) == expected


def test_concatenation_by_hand():
    """The second inception block reads its four branches side by side: 128 + 192 + 96 + 64."""
    channels = {c.name: c for c in built("s3d")[2].channels}
    block = "net.features.6"
    offsets = {
        f"{block}.branch0.0": 0,
        f"{block}.branch1.1.1.0": 128,
        f"{block}.branch2.1.1.0": 128 + 192,
        f"{block}.branch3.1.0": 128 + 192 + 96,
    }
    readers = [f"net.features.8.branch{b}.weight" for b in ("0.0", "1.0.0", "2.0.0", "3.1.0")]
    for name, offset in offsets.items():
        pieces = channels[name].readers
        assert [p.name for p in pieces] == readers
        for piece in pieces:
            places = torch.arange(480.0).view(1, -1, 1, 1, 1).expand(piece.parameter.shape)
            first = piece.view.rows(places)[:, 0]
            assert first.tolist() == list(range(offset, offset + channels[name].num_groups))
    assert len(channels) == 77  # Every convolution: none shares its channels with another.


def test_a_flattened_grid_by_hand():
    """FrameEncoder.project reads 16 neighbouring columns for each channel of the last block."""
    (channels,) = (c for c in built("cnn_gru")[2].channels if c.name == "encoder.cnn.2.0")
    (piece,) = channels.readers
    assert piece.name == "encoder.project.weight"
    columns = torch.arange(512.0).expand(64, 512)
    assert piece.view.rows(columns)[3].unique().tolist() == list(range(48, 64))


def test_hidden_units_by_hand():
    found = {c.name: c for c in built("cnn_gru_deep")[2].channels if c.together is not None}
    assert set(found) == {f"rnn.l{i}{d}" for i in (0, 1) for d in ("", "_reverse")}
    lower, upper = found["rnn.l0_reverse"], found["rnn.l1_reverse"]
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    assert {p.name for p in lower.writers} == {f"rnn.{kind}_l0_reverse" for kind in kinds}
    columns = {p.name: p.view for p in lower.readers}
    assert set(columns) == {
        "rnn.weight_hh_l0_reverse",
        "rnn.weight_ih_l1",
        "rnn.weight_ih_l1_reverse",
    }
    places = torch.arange(128.0).expand(192, 128)
    assert set(columns["rnn.weight_ih_l1"].rows(places)[5].tolist()) == {64 + 5}
    assert {p.name for p in upper.readers} == {"rnn.weight_hh_l1_reverse", "head.1.weight"}
    head = next(p.view for p in upper.readers if p.name == "head.1.weight")
    assert set(head.rows(torch.arange(128.0).expand(5, 128))[5].tolist()) == {64 + 5}


@pytest.mark.parametrize(("name", "hidden"), [("swin3d_t", 12), ("small_mvit", 3)])
def test_of_a_normalised_stream_only_the_inner_units_of_the_mlps_go(name: str, hidden: int):
    found = {layer: held for layer, held in sets(name).items() if not layer.endswith(".heads")}
    assert len(found) == hidden
    for layer, (writers, readers) in found.items():
        assert layer.endswith("mlp.0")
        assert (writers, readers) == ({layer}, {layer.removesuffix("0") + "3"})
    notes = built(name)[2].notes
    assert any(
        "LayerNorm" in note and note.startswith(("patch_embed", "conv_proj")) for note in notes
    )


def test_heads_of_mvit_go_by_their_readers_and_others_stay_with_the_reason():
    heads = {layer: held for layer, held in sets("small_mvit").items() if layer.endswith("heads")}
    assert heads
    for layer, (writers, readers) in heads.items():
        attention = layer.removesuffix(".heads")
        assert (writers, readers) == ({f"{attention}.qkv"}, {f"{attention}.project.0"})
    assert not any(b.name in heads for b in built("small_mvit")[2].group_sets("channel"))
    notes = built("swin3d_t")[2].notes
    assert sum("finds the size of a head from its number" in note for note in notes) == 12


def test_the_classifier_is_an_output():
    for name in MODELS:
        (note,) = (n for n in built(name)[2].notes if "output of the network" in n)
        assert "(5)" in note


class Standardised(nn.Conv2d):
    """Filters of mean 0 and variance 1, over the channels that they read."""

    def forward(self, input: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, training=True)
        return self._conv_forward(input, weight.view_as(self.weight), self.bias)


def test_what_standardised_weights_read_stays_with_the_reason():
    first, last = nn.Conv2d(3, 6, 1), nn.Conv2d(8, 2, 1)
    net = nn.Sequential(first, nn.ReLU(), Standardised(6, 8, 1), nn.ReLU(), last)
    found = couple(net, torch.randn(1, 3, 4, 4))
    assert [c.name for c in found.channels] == ["2"]
    assert any(n.startswith("0 (6): is read by weights that are standardised") for n in found.notes)


def test_a_pool_of_the_examples_size_does_not_hold_the_trials_to_it():
    """The trials run on 32 x 32; the model itself keeps its pool."""

    class Seen(nn.Conv2d):
        sizes: ClassVar[list[int]] = []

        def forward(self, input: Tensor) -> Tensor:
            self.sizes.append(input.shape[-1])
            return super().forward(input)

    net = nn.Sequential(
        Seen(3, 6, 3, stride=16), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(6, 2)
    )
    x = torch.randn(1, 3, 128, 128)
    found = couple(net, x)
    assert [(c.name, c.num_groups) for c in found.channels] == [("0", 6)]
    assert set(Seen.sizes) == {128, 32}
    assert Seen.sizes.count(128) <= 3
    assert type(net[2]) is nn.AvgPool2d
    small = remove(net.eval(), found, {"0": torch.arange(6) < 2})
    assert small(x).shape == (1, 2)
