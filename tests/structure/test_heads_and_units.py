"""Attention heads and hidden units: which rows and columns they are, and that they can go."""

import pytest
import torch
from foreign_nets import made
from own_nets import CLIP, Attention
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.models.video.mvit import MultiscaleAttention
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

import regkit
from regkit.errors import InputError
from regkit.penalties import GroupLasso
from regkit.structure.attention import heads
from regkit.structure.channels import assert_disjoint
from regkit.structure.coupling import couple
from regkit.structure.coupling import heads as traced_heads
from regkit.structure.groups import GroupSet
from regkit.structure.recurrent import units


def places(group_set: GroupSet, leaf: str, group: int, axis: int = 0) -> set[int]:
    """Return where along an axis of a parameter a group lies."""
    (piece,) = (p for p in group_set.pieces if p.name.split(".")[-1] == leaf or p.name == leaf)
    shape = piece.parameter.shape
    along = [1] * len(shape)
    along[axis] = -1
    numbers = torch.arange(float(shape[axis])).view(along).expand(shape)
    return set(piece.view.rows(numbers)[group].int().tolist())


def zero_channels(group_set: GroupSet, groups: list[int]) -> None:
    rows = group_set.rows().clone()
    rows[groups] = 0
    group_set.write(rows)


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Return attention (heads, tokens, head_dim) by its definition."""
    scores = torch.einsum("htd,hsd->hts", q, k) / q.shape[-1] ** 0.5 + bias
    return torch.einsum("hts,hsd->htd", scores.softmax(-1), v)


def kept_heads(weight: Tensor, bias: Tensor, kept: list[int], width: int) -> list[tuple]:
    """Return the rows of query, key and value of the kept heads: (heads, width, in)."""
    w, b = weight.unflatten(0, (3, -1, width)), bias.unflatten(0, (3, -1, width))
    return [(w[part][kept], b[part][kept]) for part in range(3)]


def test_a_head_of_torch_attention():
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(module.in_proj_bias)
    (group_set,) = heads(nn.Sequential(module))
    assert (group_set.name, group_set.num_groups) == ("0", 3)
    rows = {*range(4, 8), *range(16, 20), *range(28, 32)}
    assert places(group_set, "in_proj_weight", 1) == places(group_set, "in_proj_bias", 1) == rows
    assert places(group_set, "0.out_proj.weight", 1, axis=1) == {4, 5, 6, 7}
    zero_channels(group_set, [1])
    x, kept = torch.randn(1, 5, 12), [0, 2]
    parts = kept_heads(module.in_proj_weight, module.in_proj_bias, kept, 4)
    q, k, v = (torch.einsum("ti,hdi->htd", x[0], w) + b[:, None] for w, b in parts)
    last = module.out_proj.weight.unflatten(1, (3, 4))[:, kept]
    wanted = torch.einsum("htd,ohd->to", attended(q, k, v), last) + module.out_proj.bias
    torch.testing.assert_close(module(x, x, x)[0][0], wanted)


def test_a_head_with_separate_projections_and_extra_keys():
    module = nn.MultiheadAttention(12, 3, kdim=5, vdim=7, add_bias_kv=True)
    (group_set,) = heads(module)
    for leaf in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        assert places(group_set, leaf, 2) == {8, 9, 10, 11}
    assert (
        places(group_set, "bias_k", 0, axis=2)
        == places(group_set, "bias_v", 0, axis=2)
        == {0, 1, 2, 3}
    )
    assert {p.name for p in group_set.pieces} == set(dict(module.named_parameters())) - {
        "out_proj.bias"
    }


def test_a_head_of_swin():
    """One window holds the whole clip, so that attention runs over all of its tokens."""
    module = ShiftedWindowAttention3d(12, [2, 2, 2], [0, 0, 0], 3)
    (group_set,) = heads(module)
    leaves = {"qkv.weight", "qkv.bias", "proj.weight", "relative_position_bias_table"}
    assert {p.name for p in group_set.pieces} == leaves
    assert places(group_set, "qkv.weight", 2) == {*range(8, 12), *range(20, 24), *range(32, 36)}
    assert places(group_set, "relative_position_bias_table", 2, axis=1) == {2}
    zero_channels(group_set, [0])
    x, kept = torch.randn(1, 2, 2, 2, 12), [1, 2]
    parts = kept_heads(module.qkv.weight, module.qkv.bias, kept, 4)
    tokens = x.reshape(8, 12)
    q, k, v = (torch.einsum("ti,hdi->htd", tokens, w) + b[:, None] for w, b in parts)
    bias = module.get_relative_position_bias([2, 2, 2])[0][kept]
    last = module.proj.weight.unflatten(1, (3, 4))[:, kept]
    wanted = torch.einsum("htd,ohd->to", attended(q, k, v, bias), last) + module.proj.bias
    torch.testing.assert_close(module(x).reshape(8, 12), wanted)
    assert len(heads(ShiftedWindowAttention(12, [2, 2], [0, 0], 3))) == 1


def test_a_head_of_mvit_can_be_cut_out():
    """Pooling, its norms and relative positions are shared by the heads and stay."""
    options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True}
    pools = {"kernel_q": [3] * 3, "kernel_kv": [3] * 3, "stride_q": [1] * 3, "stride_kv": [1, 2, 2]}
    module = MultiscaleAttention([2, 4, 4], 12, 12, 3, **pools, **options)
    for norm in (m for m in module.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.normal_(norm.bias)
    (group_set,) = heads(module)
    assert {p.name for p in group_set.pieces} == {"qkv.weight", "qkv.bias", "project.0.weight"}
    zero_channels(group_set, [1])
    x, size = torch.randn(1, 33, 12), (2, 4, 4)
    whole = module(x, size)[0]
    rows = [i for i in range(36) if i % 12 // 4 != 1]
    columns = [i for i in range(12) if i // 4 != 1]
    with torch.no_grad():
        module.qkv.weight = nn.Parameter(module.qkv.weight[rows])
        module.qkv.bias = nn.Parameter(module.qkv.bias[rows])
        module.project[0].weight = nn.Parameter(module.project[0].weight[:, columns])
    module.num_heads, module.output_dim = 2, 8
    torch.testing.assert_close(module(x, size)[0], whole)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_units_hold_the_rows_of_all_gates(kind: type[nn.RNNBase]):
    rnn = kind(5, 4, num_layers=2, bidirectional=True)
    gates = {nn.GRU: 3, nn.LSTM: 4, nn.RNN: 1}[kind]
    found, _ = units(nn.Sequential(nn.Linear(2, 5), rnn))
    assert_disjoint(found)
    assert [b.name for b in found] == ["1.l0", "1.l0_reverse", "1.l1", "1.l1_reverse"]
    rows = {gate * 4 + 2 for gate in range(gates)}
    for group_set in found:
        assert len(group_set.pieces) == 4
        for piece in group_set.pieces:
            assert places(group_set, piece.name, 2) == rows
    assert found[0].size == gates * (5 + 4 + 2)
    assert found[3].size == gates * (8 + 4 + 2)
    zero_channels(found[3], [2])
    assert rnn(torch.randn(6, 3, 5))[0][..., 4 + 2].abs().max() == 0


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_units_of_a_cell(kind: type[nn.RNNCellBase]):
    cell = kind(5, 4)
    (group_set,), _ = units(cell)
    zero_channels(group_set, [1])
    state = cell(torch.randn(3, 5))
    assert (state[0] if isinstance(state, tuple) else state)[:, 1].abs().max() == 0


def test_units_with_projections_are_refused_at_the_door():
    net = nn.Sequential(nn.LSTM(5, 4, proj_size=2))
    assert units(net)[0] == []
    with pytest.raises(InputError, match=r"0: has projections, and torch runs no LSTM"):
        regkit.Regularizer(net, GroupLasso(1e-3, groups="hidden_unit"))


def test_shared_layers_count_once():
    attention, rnn = nn.MultiheadAttention(4, 2), nn.GRU(3, 2)
    model = nn.ModuleList([attention, rnn, attention, rnn])
    assert (len(heads(model)), len(units(model)[0])) == (1, 1)
    twin = nn.GRU(3, 2)
    twin.weight_ih_l0 = rnn.weight_ih_l0
    assert_disjoint(units(nn.ModuleList([rnn, twin]))[0])


def test_a_model_without_either():
    assert not heads(nn.Linear(2, 2))
    assert units(nn.Linear(2, 2)) == ([], [])


@pytest.mark.parametrize("kind", ["packed", "apart", "shared"])
def test_heads_of_attention_that_is_not_known_are_found_by_a_run(kind: str):
    net, clip = Attention(kind), torch.randn(CLIP)
    with pytest.raises(InputError, match=r"the heads of Attention are found by running the model"):
        regkit.Regularizer(nn.Sequential(net), GroupLasso(1e-3, groups="head"))
    (found,), _ = traced_heads(net, clip)
    held = [p for name, p in net.named_parameters() if name[0] in "qkv"] + [net.proj.weight]
    assert found.num_groups == (2 if kind == "shared" else 4)
    assert found.num_groups * found.size == sum(p.numel() for p in held)
    wanted = sum(p.detach().square().sum() for p in held)
    torch.testing.assert_close(found.rows().square().sum(), wanted)


@pytest.mark.slow
def test_heads_of_timesformer_stay_with_the_reason():
    net, x = made("timesformer")
    notes = couple(net, x).notes
    assert (
        sum("its heads cannot be cut, for the code around them takes" in n for n in notes) == 4
    )  # time and space
