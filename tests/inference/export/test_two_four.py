"""2:4: which layers obey it, and who is refused. The conversion itself needs a GPU."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.inference.export.two_four import obeys_two_four, two_four, unfit
from regkit.penalties import NMSparsity

SPARSE_CORES = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def pruned(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        layer.weight.copy_(NMSparsity(lam=1.0).prox(layer.weight, 1.0))
    return layer


def by_hand(weight: Tensor) -> bool:
    rows = weight.tolist()
    blocks = [row[k : k + 4] for row in rows for k in range(0, len(row), 4)]
    return all(sum(one != 0 for one in block) <= 2 for block in blocks)


def test_the_pattern_is_that_of_the_penalty():
    for _ in range(50):
        weight = torch.randn(3, 8) * (torch.rand(3, 8) < 0.4)
        assert obeys_two_four(weight) == by_hand(weight)
    assert obeys_two_four(pruned(nn.Linear(64, 32)).weight)
    assert not obeys_two_four(nn.Linear(64, 32).weight)
    shifted = torch.tensor([[0.0, 0, 1, 1, 1, 0, 0, 1]])
    assert obeys_two_four(shifted)
    assert not obeys_two_four(shifted.roll(-2, 1))
    assert not obeys_two_four(torch.zeros(4, 6))


def net() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "fits": pruned(nn.Linear(64, 32)),
            "dense": nn.Linear(64, 32),
            "narrow": pruned(nn.Linear(64, 20)),
            "attention": nn.MultiheadAttention(32, 2),
            "conv": nn.Conv2d(4, 4, 1),
        }
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_that_stay_dense_are_told_why(dtype: torch.dtype):
    found = unfit(net().to(dtype))
    assert sorted(found) == ["attention.out_proj", "dense", "narrow"]
    assert "NonDynamicallyQuantizableLinear" in found["attention.out_proj"]
    assert "more than two of four" in found["dense"]
    assert "20 x 64; multiples of 16 x 16" in found["narrow"]


def test_float32_is_refused():
    """There the hardware keeps one of two: a 2:4 weight would lose entries without a word."""
    assert "torch.float32; call model.half()" in unfit(net())["fits"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses():
    with pytest.raises(InputError, match="finds no GPU here"):
        two_four(net().half())


def test_other_gpus_and_places_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"on cpu. Call model.cuda\(\)"):
        two_four(net().half())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old")

    weight = SimpleNamespace(device=torch.device("cuda", 0))
    there = nn.Identity()
    monkeypatch.setattr(there, "parameters", lambda: [weight])
    with pytest.raises(InputError, match=r"8\.0 or more.*; Old has 7\.5"):
        two_four(there)


@pytest.mark.skipif(not SPARSE_CORES, reason="it needs a CUDA GPU of compute capability 8.0")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_converted_layers_give_the_same_numbers():
    model = nn.Sequential(pruned(nn.Linear(64, 32)), nn.Linear(32, 16)).half().cuda()
    before = model[0].weight.detach().clone()
    found = two_four(model)
    assert found.sparse == ["0"]
    assert list(found.dense) == ["1"]
    assert torch.equal(found.model[0].weight.to_dense(), before)
    assert torch.equal(model[0].weight, before)
    for size in (1, 3, 16):
        clip = torch.randn(size, 64, device="cuda", dtype=torch.float16)
        with torch.inference_mode():
            torch.testing.assert_close(found.model(clip), model(clip), atol=1e-2, rtol=1e-2)
