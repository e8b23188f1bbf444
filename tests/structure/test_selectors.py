"""What is penalised, and why the rest is not."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from regkit import InputError, Regularizer
from regkit.penalties import L1, TemporalSmoothness
from regkit.structure.selectors import find_module, select_parameters, weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4))
        self.words = nn.Embedding(5, 4)
        self.rnn = nn.GRU(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.head = nn.Linear(4, 2)


DEFAULT = {
    "stem.0.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "head.weight",
}


def test_default_is_all_weights_and_reasons_are_given():
    reasons = {e.name: e.why for e in select_parameters(Net())}
    assert set(weights(Net())) == DEFAULT
    assert reasons["stem.1.weight"] == "normalisation"
    assert reasons["words.weight"] == "embedding"
    assert reasons["head.bias"] == reasons["rnn.bias_hh_l0"] == "bias"
    assert reasons["attention.in_proj_bias"] == "bias"
    assert "no weight of" in reasons["token"]


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (["head"], {"head.weight"}),
        (["stem"], {"stem.0.weight"}),
        (["stem.*"], {"stem.0.weight"}),
        (["*"], DEFAULT),
        (["st*", "head"], {"stem.0.weight", "head.weight"}),
        (["*.bias"], {"stem.0.bias", "stem.1.bias", "head.bias", "attention.out_proj.bias"}),
        (["rnn.weight_hh*"], {"rnn.weight_hh_l0"}),
        ([nn.Conv3d], {"stem.0.weight"}),
        (["Conv3d"], {"stem.0.weight"}),
        ([nn.BatchNorm3d], {"stem.1.weight"}),
        (["*", "!head"], DEFAULT - {"head.weight"}),
        (["!rnn"], DEFAULT - {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}),
        (["token"], {"token"}),
    ],
)
def test_selectors(on: list, expected: set[str]):
    assert set(weights(Net(), on)) == expected


def test_names_that_are_nowhere_at_the_top_are_looked_for_deeper():
    inner = nn.ModuleDict({"net": nn.ModuleDict({"net": Net()})})
    assert set(weights(inner, "head")) == {"net.net.head.weight"}
    assert set(weights(inner, ["st*", "!stem.0"])) == set()
    assert find_module(inner, "stem.0", "L1") is inner["net"]["net"].stem[0]
    twice = nn.ModuleDict({"a": Net(), "b": Net()})
    with pytest.raises(InputError, match=r"names no module; close: '[ab].head', '[ab].head'"):
        find_module(twice, "head", "L1")


def test_a_selector_that_matches_nothing_names_close_ones():
    with pytest.raises(InputError, match=r"params='haed' matches no weight; close: 'head'"):
        Regularizer(Net(), L1(0.1, params="haed"))
    with pytest.raises(InputError, match="params=Conv2d matches no parameter: Net has no such"):
        Regularizer(Net(), L1(0.1, params=[nn.Conv2d]))
    with pytest.raises(InputError, match=r"params=.haed"):
        Regularizer(Net(), L1(0.1, params=["*", "!haed"]))


def test_a_model_without_weights_is_refused():
    with pytest.raises(InputError, match="BatchNorm3d has no parameter to penalise"):
        Regularizer(nn.BatchNorm3d(3), L1(0.1))


def test_lazy_parameters_are_refused():
    with pytest.raises(InputError, match="run one forward first"):
        Regularizer(nn.LazyLinear(3), L1(0.1))


def test_parametrized_weights_are_left_out_with_the_reason():
    model = nn.Sequential(weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert set(weights(model)) == {"1.weight"}
    assert any("parametrized" in e.why for e in select_parameters(model))


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    reg = Regularizer(model, L1(1.0))
    assert float(reg.value()) == pytest.approx(float(model[0].weight.detach().abs().sum()))


def test_names_are_those_before_compilation():
    model = torch.compile(nn.Sequential(nn.Linear(3, 3)))
    assert isinstance(model, nn.Module)
    assert set(weights(model)) == {"0.weight"}
    net = Net()
    net.head = torch.compile(net.head)
    assert find_module(net, "head", "a test") is net.get_submodule("head._orig_mod")
    with pytest.raises(InputError, match=r"close: .head.\. Give"):
        find_module(net, "haed", "a test")


def test_of_that_names_no_module_names_close_ones():
    with pytest.raises(InputError, match=r"TemporalSmoothness got module=.haed., .*close: .head."):
        Regularizer(Net(), TemporalSmoothness(0.1, module="haed"))
    with pytest.raises(InputError, match="got no `module`, and Net does not say where"):
        Regularizer(Net(), TemporalSmoothness(0.1))


def test_summary_says_what_and_why():
    net = Net()
    net.head.weight.requires_grad_(False)
    reg = Regularizer(
        net, {"sparse": L1(0.1, params=["stem", "head"]), "small": L1(0.2, params="stem")}
    )
    lines = {line.split()[0]: line for line in reg.summary().splitlines() if line}
    assert "sparse (on stem) + small (on stem)" in lines["stem.0.weight"]
    assert "(frozen)" in lines["head.weight"]
    assert "4x3x3x3x3" in lines["stem.0.weight"]
    assert "not in `params`" in lines["stem.1.weight"]
    assert "L1(lam=0.1" in lines["sparse:"]
    assert f"{net.stem[0].weight.numel() + net.head.weight.numel():,} of" in lines["penalised:"]


def test_a_weight_without_a_scale_is_left_out_with_the_reason():
    """Of the old spectral_norm; what torch's pruning masks has a scale, and stays a weight."""
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    prune.l1_unstructured(net[1], "weight", 0.5)
    entries = {e.name: e for e in select_parameters(net)}
    assert not entries["0.weight_orig"].chosen
    assert "its scale means nothing" in entries["0.weight_orig"].why
    assert entries["1.weight_orig"].chosen
