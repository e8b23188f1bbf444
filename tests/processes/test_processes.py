"""What needs processes of its own: compilers (they would trace type checks) and ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


SCRIPTS = ["compiled.py", "interpreted.py", "two_processes.py", "sharded_groups.py"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_ends_as_the_plain_run(script: str, tmp_path: Path):
    if script == "interpreted.py":
        pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, HERE / script, tmp_path / "store"][: 3 if script in SCRIPTS[2:] else 2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
