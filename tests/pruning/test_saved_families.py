"""Shrunk nets of any origin come back: with their class, and as a program without it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import regkit
from regkit.inference.export.exported import quiet
from regkit.structure.coupling import couple

sys.path.insert(0, str(Path(__file__).parents[1] / "structure"))
from foreign_nets import FOREIGN, HERE, made  # pyright: ignore[reportMissingImports]


def halved(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Make every second channel of each set zero, and cut those out."""
    coupling = couple(model, example)
    for group_set in coupling.group_sets("channel"):
        dead = torch.arange(group_set.num_groups)[:, None] % 2 == 0
        group_set.write(group_set.rows().masked_fill(dead, 0))
    small, report = regkit.shrink(model, example, timed=False, coupling=coupling)
    assert report.after.parameters < 0.9 * report.before.parameters
    return small


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE | FOREIGN)
def test_a_shrunk_net_comes_back_with_its_class_and_without(name: str, tmp_path: Path) -> None:
    whole, example = made(name)
    small = halved(whole, example)
    with torch.no_grad():
        wanted = small(example)
        torch.testing.assert_close(wanted, whole(example), rtol=1e-4, atol=1e-5)
    regkit.save_shrunk(small, tmp_path / "small.pt", whole)
    torch.load(tmp_path / "small.pt", weights_only=True)
    new, _ = made(name, seed=1)
    with torch.no_grad():
        assert not torch.equal(new(example), wanted)
        assert torch.equal(regkit.load_shrunk(new, tmp_path / "small.pt")(example), wanted)
    with quiet():
        torch.export.save(torch.export.export(small, (example,)), tmp_path / "small.pt2")
    again = torch.export.load(tmp_path / "small.pt2").module()
    torch.testing.assert_close(again(example), wanted, rtol=1e-5, atol=1e-6)
