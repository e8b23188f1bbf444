"""Machine code for the processor at hand."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from export_nets import expected
from torch import nn

from regkit.errors import InputError
from regkit.inference.export.formats import export_package

EXAMPLE = torch.zeros(1, 3, 4)


@pytest.mark.skipif("REGKIT_SLOW" not in os.environ, reason="slow; REGKIT_SLOW=1 tries it")
@pytest.mark.skipif(shutil.which("g++") is None, reason="it needs the compiler g++")
def test_a_package_runs_for_any_batch(tmp_path: Path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    done = export_package(net, EXAMPLE, tmp_path / "net.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    runner = torch._inductor.aoti_load_package(str(done.path))
    for size in (1, 2, 6):
        clip = torch.randn(size, *EXAMPLE.shape[1:])
        torch.testing.assert_close(runner(clip), expected(net, clip), rtol=0, atol=1e-5)


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(InputError, match=r"could not compile Sequential.*needs a C\+\+ compiler"):
        export_package(nn.Sequential(nn.Flatten(), nn.ReLU()), EXAMPLE, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []
