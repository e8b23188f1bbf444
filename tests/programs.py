"""Programs in new processes, forked from one that has imported what they need.

A new interpreter takes longer to import that than most of them to do their work.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

TRAIN = Path(__file__).parents[1] / "train.py"
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "regkit.sweeps.job",
        "regkit.sweeps.sweeper",
        "regkit.training.fit",
        "regkit.sweeps.report.write",
    ]
)


class Program:
    """A script that runs in a folder, leading a group of processes; to be used as Popen is.

    environment: added to that of this process.
    """

    def __init__(self, script: Path, *words: str, folder: Path, **environment: str) -> None:
        printed = Path(tempfile.mkdtemp(prefix=".printed-", dir=folder))
        files = [printed / "out", printed / "err"]
        whole = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self._process = _FORKED.Process(target=_run, args=(script, words, folder, whole, files))
        self._process.start()
        self._files = files
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code; None while the program runs."""
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[int, str, str]:
        """Wait for the end; return the exit code and what went to stdout and to stderr."""
        self._process.join(timeout)
        code, (out, err) = self.poll(), [file.read_text() for file in self._files]
        if code is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("program", timeout, out, err)
        return code, out, err


def _run(
    script: Path,
    words: tuple[str, ...],
    folder: Path,
    environment: Mapping[str, str],
    files: list[Path],
) -> None:
    os.setsid()
    # Whoever runs the tests in the background of a script has them ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)  # what the environment says is read when torch is imported
    warnings.simplefilter("default")
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
