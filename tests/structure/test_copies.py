"""The user's model stays as it is, however it is wrapped, and errors say what to do."""

from copy import deepcopy

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.lightning.video_classifier import VideoClassifier
from regkit.models.cnn_gru import CnnGru
from regkit.models.cnn_lstm import CnnLstm
from regkit.models.tiny3d import Tiny3D
from regkit.pruning.remaining import remaining
from regkit.pruning.remove import remove
from regkit.structure import coupling
from regkit.structure.coupling import couple
from regkit.training.summary import without_dead_channels

CLIP = (1, 3, 4, 16, 16)
NAMES = ["features.0.0", "features.1.0", "features.2.0"]


class Lit(pl.LightningModule):
    """A module that a trainer holds; the trainer holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.net = Tiny3D(num_classes=3)

    def forward(self, clip: Tensor) -> Tensor:
        return self.net(clip)


class Labels(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.argmax(1)


def names(model: nn.Module) -> list[str]:
    return [c.name for c in couple(model, torch.randn(CLIP)).channels]


@pytest.mark.parametrize("make", [Tiny3D, CnnLstm])
def test_nothing_of_the_model_changes(make: type[nn.Module]):
    model = make(num_classes=3, dropout=0.5).train()
    next(model.parameters()).requires_grad_(False)
    next(model.children()).eval()
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = deepcopy(model.state_dict())
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    random = torch.get_rng_state()
    remaining(model, torch.randn(CLIP, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not seen
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_frozen_weights_stay_in_the_pieces_and_stay_frozen():
    model = Tiny3D(num_classes=3)
    model.features[0].requires_grad_(False)
    coupling = couple(model, torch.randn(CLIP))
    first = coupling.group_sets("channel")[0]
    assert len(first.pieces) == 3
    assert not any(p.parameter.requires_grad for p in first.pieces)
    small = remove(model, coupling, {"features.0.0": torch.arange(16) < 4})
    assert not small.features[0][0].weight.requires_grad
    assert small.features[1][0].weight.requires_grad


def test_wrapped_models():
    net = Tiny3D(num_classes=3)
    assert names(net) == NAMES
    assert names(nn.DataParallel(net)) == NAMES
    assert names(torch.compile(net)) == NAMES
    outer = nn.Sequential(torch.compile(net))
    found = couple(outer, torch.randn(CLIP))
    assert [c.name for c in found.channels] == [f"0.{name}" for name in NAMES]
    own = {id(p) for p in net.parameters()}
    assert all(id(p.parameter) in own for c in found.channels for p in c.writers)


def test_metrics_beside_the_network_do_not_hide_it():
    """They answer == by a metric, which counts as yes."""
    net = CnnGru(num_classes=4)
    model = VideoClassifier(net, ["a", "b", "c", "d"], torch.optim.SGD)
    alone, within = (couple(m, torch.randn(CLIP)) for m in (net, model))
    assert [f"net.{c.name}" for c in alone.channels] == [c.name for c in within.channels] != []


def test_a_lightning_module_with_its_trainer():
    model = Lit()
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, barebones=True)
    trainer.uncopyable = (i for i in range(3))
    model.trainer = trainer
    assert names(model) == [f"net.{name}" for name in NAMES]
    assert model.trainer is trainer


def test_channels_last_weights():
    model = Tiny3D(num_classes=3).eval().to(memory_format=torch.channels_last_3d)
    clip = torch.randn(CLIP)
    coupling = couple(model, clip)
    dead = {c.name: torch.arange(c.num_groups) % 3 == 0 for c in coupling.channels}
    for group_set in coupling.group_sets("channel"):
        group_set.write(group_set.rows().masked_fill(dead[group_set.name][:, None], 0))
    with torch.no_grad():
        whole, left = model(clip), remove(model, coupling, dead)(clip)
    torch.testing.assert_close(left, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "example", [torch.zeros(CLIP), (torch.rand(CLIP),), {"clip": torch.rand(CLIP)}]
)
def test_kinds_of_examples_and_zeros_hide_nothing(example):
    model = Tiny3D(num_classes=3)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert [c.name for c in couple(model, example).channels] == NAMES


def test_an_example_of_zeros_hides_nothing_without_biases():
    layers = nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    assert [c.name for c in couple(nn.Sequential(*layers), torch.zeros(1, 4)).channels] == ["0"]


def test_a_half_precision_model():
    model = Tiny3D(num_classes=3).bfloat16()
    assert [c.name for c in couple(model, torch.randn(CLIP).bfloat16()).channels] == NAMES


def test_an_example_that_does_not_fit():
    with pytest.raises(
        InputError, match=r"example of shape \(1, 4, 4, 8, 8\), and it failed: .*channels"
    ):
        couple(Tiny3D(num_classes=3), torch.randn(1, 4, 4, 8, 8))
    with pytest.raises(InputError, match=r"missing .*argument"):
        couple(Tiny3D(num_classes=3), ())


def test_a_model_that_returns_no_scores():
    with pytest.raises(InputError, match="returned no tensor of floating point"):
        couple(nn.Sequential(Tiny3D(num_classes=3), Labels()), torch.randn(CLIP))


def test_a_model_that_cannot_be_copied():
    model = Tiny3D(num_classes=3)
    model.rest = (i for i in range(3))
    with pytest.raises(InputError, match=r"could not be copied .*generator"):
        couple(model, torch.randn(CLIP))


def test_channels_that_are_not_there():
    model = Tiny3D(num_classes=3)
    coupling = couple(model, torch.randn(CLIP))
    with pytest.raises(InputError, match=r"'features.9', which the coupling does not have"):
        remove(model, coupling, {"features.9": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"3 flags for 'features.0.0', which has 16"):
        remove(model, coupling, {"features.0.0": torch.ones(3, dtype=torch.bool)})


def test_a_search_that_fails_is_told_and_loses_nothing(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise IndexError("index 12 is out of bounds")

    monkeypatch.setattr(coupling, "trace", fails)
    model, clip = Tiny3D(num_classes=3), torch.randn(CLIP)
    left = remaining(model, clip)
    assert left.parameters == left.all_parameters
    assert left.notes == (
        "all channels: their search failed (IndexError: index 12 is out of bounds)",
    )


def test_a_count_that_fails_loses_no_run(caplog: pytest.LogCaptureFixture):
    class Breaks(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            raise IndexError("no such frame")

    lit = VideoClassifier(Breaks(), ["a", "b"], torch.optim.SGD)
    found = without_dead_channels(lit, torch.randn(CLIP))
    assert set(found.values()) == {None}
    assert "what would remain is not known, because" in caplog.text
