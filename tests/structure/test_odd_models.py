"""No wrong group, whatever the model does with its channels."""

import pytest
import torch
from odd_models import CLIP, ODD

from regkit.pruning.remove import remove
from regkit.structure.coupling import couple

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


@pytest.mark.parametrize("name", ODD)
def test_what_is_found_and_what_is_not(name: str):
    make, removable, by_readers_alone = ODD[name]
    coupling = couple(make(), torch.randn(CLIP))
    assert {c.name for c in coupling.channels} == removable
    assert {c.name for c in coupling.channels if not c.by_writers} == by_readers_alone
    assert {b.name for b in coupling.group_sets("channel")} == removable - by_readers_alone
    assert {b.name for b in coupling.group_sets("channel_inputs")} == removable


@pytest.mark.parametrize("kind", ["channel", "channel_inputs"])
@pytest.mark.parametrize("name", [name for name, (_, found, _) in ODD.items() if found])
def test_each_single_channel_can_be_removed(name: str, kind: str):
    """One channel at a time, in the model's own weights."""
    model = ODD[name][0]().eval()
    clip = torch.randn(CLIP)
    coupling = couple(model, clip)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    channels = {c.name: c for c in coupling.channels}
    for group_set in coupling.group_sets(kind):
        if channels[group_set.name].together is not None:
            continue
        for g in range(group_set.num_groups):
            mask = torch.arange(group_set.num_groups) == g
            group_set.write(group_set.rows().masked_fill(mask[:, None], 0))
            with torch.no_grad():
                torch.manual_seed(1)
                whole = model(clip)
                torch.manual_seed(1)
                left = remove(model, coupling, {group_set.name: mask})(clip)
            model.load_state_dict(state)
            whole, left = (o["y"] if isinstance(o, dict) else o for o in (whole, left))
            torch.testing.assert_close(left, whole, rtol=1e-5, atol=1e-6)


def test_a_gate_belongs_to_what_it_gates():
    """Rows i and C + i of the convolution make channel i of a * sigmoid(b)."""
    model = ODD["gated"][0]()
    coupling = couple(model, torch.randn(CLIP))
    (channels,) = (c for c in coupling.channels if c.name == "conv1")
    weight = next(p for p in channels.writers if p.name == "conv1.weight")
    rows = torch.arange(8.0).view(8, 1, 1, 1, 1).expand(weight.parameter.shape)
    assert [set(r.tolist()) for r in weight.view.rows(rows)] == [{i, 4 + i} for i in range(4)]


def test_two_places_of_one_channel_in_a_concatenation():
    coupling = couple(ODD["dense"][0](), torch.randn(CLIP))
    (channels,) = (c for c in coupling.channels if c.name == "a")
    found = [p for p in channels.writers if p.name == "norm.weight"]
    places = [
        set(row.tolist()) for row in torch.cat([p.view.rows(torch.arange(14.0)) for p in found], 1)
    ]
    assert places == [{i, 10 + i} for i in range(4)]


def test_reasons_are_given():
    notes = {
        name: "\n".join(couple(ODD[name][0](), torch.randn(CLIP)).notes)
        for name in ("group_norm", "softmax", "sigmoid", "tied", "auxiliary", "returns")
    }
    assert "conv1 (8): passes norm, a GroupNorm: its statistics run over" in notes["group_norm"]
    assert "conv1 (8): passes a softmax over the channels" in notes["softmax"]
    assert "conv1: not removable by zero writers" in notes["sigmoid"]
    assert "which several layers share" in notes["tied"]
    assert "aux: the outputs do not depend on it in eval mode" in notes["auxiliary"]
    assert "conv (8): is an output of the network" in notes["returns"]
