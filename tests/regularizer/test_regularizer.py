"""Penalties bound to a model, without Lightning."""

import copy
import inspect
import io
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.checkpoint import checkpoint

from regkit import InputError, Regularizer
from regkit.penalties import L1, L2, ActivationPenalty, ElasticNet, TemporalSmoothness, WeightDecay
from regkit.regularizer.activations import as_frames
from regkit.regularizer.bound_penalty import named


class Clips(nn.Module):
    """A frame encoder, a recurrent net and a head."""

    frame_embeddings = "encoder"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3)
        self.rnn = nn.GRU(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.encoder(clip)
        return self.head(self.rnn(frames.transpose(0, 1))[0].mean(0))


def smoothness(frames: Tensor) -> Tensor:
    return (frames[:, 1:] - frames[:, :-1]).square().mean()


def test_value_is_the_sum_of_all_penalties_in_f():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    reg = Regularizer(model, [L1(0.5), L2(2.0, params="1"), WeightDecay(9.0)])
    expected = 0.5 * sum(m.weight.abs().sum() for m in model) + model[1].weight.square().sum()
    torch.testing.assert_close(reg.value(), expected.detach())
    assert set(reg.values()) == {"l1", "l2"}
    assert not reg.value().requires_grad


def test_activation_loss_joins_the_gradient():
    model, clip = Clips(), torch.randn(2, 5, 4)
    reg = Regularizer(model, TemporalSmoothness(0.7))
    model(clip)
    reg.activation_loss().backward()
    ours = model.encoder.weight.grad
    (expected,) = torch.autograd.grad(0.7 * smoothness(model.encoder(clip)), model.encoder.weight)
    torch.testing.assert_close(ours, expected)


def test_several_passes_are_averaged_and_evaluation_is_not_seen():
    model, clips = Clips(), torch.randn(3, 2, 5, 4)
    reg = Regularizer(model, TemporalSmoothness(1.0))
    model(clips[0])
    model(clips[1])
    model.eval()
    model(clips[2])
    with torch.no_grad():
        model.train()(clips[2])
    terms = [smoothness(model.encoder(c)) for c in clips[:2]]
    reg_loss = reg.activation_loss()
    torch.testing.assert_close(reg_loss, torch.stack(terms).mean())


def test_activation_loss_without_a_pass_says_so():
    model = Clips()
    reg = Regularizer(model, TemporalSmoothness(1.0))
    with pytest.raises(RuntimeError, match="'temporal' has not run in training mode"):
        reg.activation_loss()
    assert float(Regularizer(model, L1(0.1)).activation_loss()) == 0.0


def test_recurrent_outputs_are_known_and_layouts_can_be_said():
    model, clip = Clips(), torch.randn(2, 5, 4)
    reg = Regularizer(model, [TemporalSmoothness(1.0, module="rnn")])
    model(clip)
    expected = smoothness(model.rnn(model.encoder(clip).transpose(0, 1))[0].transpose(0, 1))
    torch.testing.assert_close(reg.activation_loss(), expected)
    wrong = Regularizer(model, TemporalSmoothness(1.0, module="rnn", layout="BTD"))
    model(clip)
    assert float(wrong.activation_loss().detach()) != pytest.approx(float(expected.detach()))


@pytest.mark.parametrize(
    ("shape", "layout", "order"),
    [
        ((2, 3, 4, 5, 6), None, "bcthw"),
        ((2, 4, 3, 5, 6), "BTCHW", "btchw"),
        ((2, 3, 4), "BDT", "bct"),
        ((2, 4, 3), None, "btc"),
    ],
)
def test_embeddings_of_any_layout(shape: tuple[int, ...], layout: str | None, order: str):
    output = torch.randn(shape)
    frames = as_frames(output, nn.Identity(), layout.replace("C", "D") if layout else None)
    space = [axis for axis in (3, 4) if axis < output.ndim]
    moved = torch.einsum(f"{order}->btc{'hw' if space else ''}", output)
    torch.testing.assert_close(frames, moved.mean(space) if space else moved)


def test_an_output_without_time_is_refused():
    model = Clips()
    reg = Regularizer(model, TemporalSmoothness(1.0, module="head"))
    with pytest.raises(InputError, match=r"Linear returned .*\(2, 2\), which has no known time"):
        model(torch.randn(2, 5, 4))
    reg.detach()
    model(torch.randn(2, 5, 4))


def test_too_few_frames_are_refused():
    model = Clips()
    reg = Regularizer(model, TemporalSmoothness(1.0, order=2))
    model(torch.randn(2, 2, 4))
    with pytest.raises(InputError, match="needs 3 time steps and got embeddings with 2 from"):
        reg.activation_loss()


def test_copies_of_the_model_are_another_model():
    model, clip = Clips(), torch.randn(2, 5, 4)
    reg = Regularizer(model, TemporalSmoothness(1.0))
    model(clip)  # holds a graph, which deepcopy would refuse
    twin = copy.deepcopy(model)
    twin(100 * clip)
    torch.testing.assert_close(reg.activation_loss(), smoothness(model.encoder(clip)))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)(clip)


def test_checkpointed_activations_are_counted_once():
    model, clip = Clips(), torch.randn(2, 5, 4, requires_grad=True)
    reg = Regularizer(model, TemporalSmoothness(1.0))
    for _ in range(2):
        scores = checkpoint(model, clip, use_reentrant=False)
        assert isinstance(scores, Tensor)
        (scores.sum() + reg.activation_loss()).backward()
    with pytest.raises(RuntimeError, match="has not run"):
        reg.activation_loss()


@dataclass(frozen=True)
class Similarity(ActivationPenalty):
    """Charge the products of frames with each other: matmul is what autocast would take."""

    @property
    def least_frames(self) -> int:
        return 1

    def value(self, frames: Tensor) -> Tensor:
        return self.lam * (frames @ frames.mT).mean()


def test_autocast_does_not_reach_the_penalty():
    model, clip = Clips(), torch.randn(2, 5, 4)
    reg = Regularizer(model, Similarity(1.0))
    with torch.autocast("cpu", torch.bfloat16):
        model(clip)
        term = reg.activation_loss()
        frames = model.encoder(clip)
    expected = (frames.float() @ frames.float().mT).mean()
    assert torch.equal(term, expected)


def test_penalties_that_do_not_compose_are_refused_with_the_remedy():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"L2 and ElasticNet meet on '0.weight'.*ElasticNet"):
        Regularizer(model, [L2(0.1), ElasticNet(0.1)])
    Regularizer(model, [L2(0.1, params="0"), ElasticNet(0.1, params="1")])
    Regularizer(model, [L1(0.1), L1(0.2, params="0"), L2(0.1), WeightDecay(0.1)])


def test_names_come_from_the_files_or_the_user():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    assert list(Regularizer(model, [L1(0.1), L1(0.2), L2(0.1)]).penalties) == ["l1", "l1_2", "l2"]
    assert list(Regularizer(model, {"sparse": L1(0.1)}).penalties) == ["sparse"]
    assert list(Regularizer(model, L1(0.1)).penalties) == ["l1"]
    with pytest.raises(InputError, match="as penalty 'l1'"):
        inspect.unwrap(named)({"l1": 0.1})  # unwrapped: tests check types, users do not


def test_readme_loop_ends_with_exact_zeros():
    model, clip = Clips(), torch.randn(8, 5, 4)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    reg = Regularizer(model, [L1(lam=0.05), TemporalSmoothness(lam=0.1)])
    reg.attach(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(clip).square().mean() + reg.activation_loss()
        loss.backward()
        optimizer.step()
    assert (model.encoder.weight == 0).any()
    assert not (model.encoder.bias == 0).any()
