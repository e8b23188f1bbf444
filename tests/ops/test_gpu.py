"""The Triton kernels without a GPU: their machine code, and where they are not served.

Their values: test_gpu_interpreted.py.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regkit.ops.gpu import launch
from regkit.ops.gpu import launch_tables as tables
from regkit.ops.kernel_args import KernelArgs
from regkit.penalties import L1

ROOT = Path(__file__).parents[2]
# Registers, spills, instructions an entry (None: not counted). More than 128 registers leave an SM
# too few warps to hide its memory; 187 instructions take as long as the 28 bytes of an entry
# (30 with its gate).
MOST = {
    "adamw elastic": (96, 0, 48),
    "adamw elastic, full": (96, 0, 60),
    "amsgrad decay box, full": (128, 0, 56),
    "adamw mcp root": (128, 0, 64),
    "sgd elastic": (80, 0, 32),
    "scad root": (96, 0, 64),
    "bfloat16": (112, 0, 56),
    "tiles of r3d_18, adamw root": (128, 32, None),
    "tile 1 x 2048 sgd": (128, 0, None),
    "long rows of r3d_18, adamw root": (128, 32, None),
    "long 4 x 2048 adamw": (128, 0, None),
    "tile 1 x 2048 adamw root, kept whole": (128, 0, None),
    "one group": (128, 32, None),
    "groups across root": (128, 32, None),
}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def has_tools() -> bool:
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return False
    tools = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
    return all((tools / name).exists() for name in ("ptxas", "cuobjdump"))


@pytest.mark.slow
@pytest.mark.skipif(not has_tools(), reason="no ptxas and cuobjdump with triton")
def test_machine_code_is_wide_and_keeps_to_registers():
    done = run(
        "tests/ops/sass.py",
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found.keys() == MOST.keys()
    for name, (registers, spills, per_entry) in MOST.items():
        code = found[name]
        assert code["registers"] <= registers, (name, code)
        assert code["spills"] <= spills, (name, code)
        if "group" not in name:
            assert code["loads"] > 0, (name, code)
            assert code["stores"] > 0, (name, code)
        if per_entry is not None:
            assert 0 < code["per_entry"] <= per_entry, (name, code)


def test_nothing_is_served_without_triton_or_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    args = KernelArgs([torch.randn(5)], [0])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert tables.prepare(args, (L1.kernel,), "scalar") is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tables.prepare(args, (L1.kernel,), "scalar") is None


def test_importing_regkit_needs_no_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import regkit, regkit.ops.gpu.launch, torch\n"
        "from regkit.ops.kernel_args import KernelArgs\n"
        "args = KernelArgs([torch.ones(3)], [0])\n"
        "assert regkit.ops.gpu.launch.prepare(args, (), 'scalar') is None"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_ops_and_the_penalties_loads_no_triton():
    """Without `regkit/__init__.py`, which loads Lightning, and that whatever it likes."""
    script = (
        "import sys, types\n"
        "package = types.ModuleType('regkit'); package.__path__ = ['regkit']\n"
        "sys.modules['regkit'] = package\n"
        "import regkit.ops.prox_pass, regkit.penalties\n"
        "assert 'triton' not in sys.modules"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_long_compilation_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(launch, "PATIENCE_S", 0.05)
    with launch._compilation_told(-1):
        pass
    time.sleep(0.1)
    assert not caplog.records  # it was over before
    for _ in range(2):
        with launch._compilation_told(-2):
            time.sleep(0.2)
    assert [record.message for record in caplog.records] == [
        "Compiling kernels for this GPU; they are kept for the next run."
    ]
