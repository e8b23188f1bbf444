"""The check of a GPU, rehearsed on the CPU."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from regkit.benchmarks.gpu.check import Report, check
from regkit.benchmarks.gpu.parts import PARTS, Row, Where
from regkit.cli.main import main

# What the command needs no more than torch for; `asked` and `training` take longest.
QUICK = ["environment", "neutral", "graphs", "scaling", "streams", "memory", "shrunk", "two_four"]
# As on a machine that has torch, Triton, Lightning and little else.
ABSENT = ["hydra", "omegaconf", "av", "torch_pruning", "beartype", "cvxpy", "skglm", "tensorboard"]


def told(name: str, row: Row) -> None:
    """Say nothing of a row."""


def kept(report: Report) -> None:
    """Keep nothing of a report."""


def right(where: Where) -> Iterator[Row]:
    yield {"case": str(where.device), "ok": True}


def wrong(where: Where) -> Iterator[Row]:
    yield {"case": "one", "ok": False}


def hangs(where: Where) -> Iterator[Row]:
    yield {"case": "before", "ok": True}
    time.sleep(600)


def dies(where: Where) -> Iterator[Row]:
    yield {"case": "before", "ok": None}
    os._exit(7)


def fails(where: Where) -> Iterator[Row]:
    yield {"case": "before", "ok": True}
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")


def test_a_part_that_hangs_or_dies_spoils_no_other():
    parts = {f.__name__: (f, 60.0) for f in (right, hangs, dies, fails, wrong)}
    parts["hangs"] = hangs, 6.0
    reports: list[Report] = []
    rows: list[tuple[str, Row]] = []
    found = check("cpu", parts, 300.0, lambda *row: rows.append(row), reports.append)
    assert [(p.name, p.ended, len(p.rows), p.is_ok) for p in found.parts] == [
        ("right", "done", 1, True),
        ("hangs", "out of time", 1, False),
        ("dies", "died with exit code 7", 1, False),
        (
            "fails",
            "failed: RuntimeError: CUDA error: an illegal memory access was encountered",
            1,
            False,
        ),
        ("wrong", "done", 1, False),
    ]
    assert [len(report.parts) for report in reports] == [1, 2, 3, 4, 5]
    assert [name for name, _ in rows] == ["right", "hangs", "dies", "fails", "wrong"]
    assert not found.is_ok


def test_what_has_no_time_left_is_said():
    found = check("cpu", {"hangs": (hangs, 9.0), "right": (right, 9.0)}, 1.0, told, kept)
    assert [part.ended for part in found.parts] == ["out of time", "out of time"]
    assert found.parts[1].rows == []


def test_the_quick_parts_are_right_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "found.json"
    words = ["gpu-check", "--device", "cpu", "--out", str(file), "--parts", *QUICK]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "its times say nothing of a GPU" in said
    assert "All parts are right." in said
    found = json.loads(file.read_text())
    assert [part["name"] for part in found["parts"]] == QUICK
    assert all(part["rows"] for part in found["parts"])


def test_a_wrong_value_is_seen(monkeypatch: pytest.MonkeyPatch):
    from regkit.benchmarks.gpu import parts
    from regkit.optim import torch_backend

    prox_rows = torch_backend.prox_rows
    rows = [r for r in parts.values(Where(parts.torch.device("cpu"))) if "top_k" in r["case"]]
    assert all(row["ok"] for row in rows)
    monkeypatch.setattr(
        "regkit.optim.proximal_step.prox_rows",
        lambda penalty, batches, *rest: (
            prox_rows(penalty, batches, *rest)
            if batches[0].slices[0].values.dtype == parts.torch.float64
            else None
        ),
    )
    rows = [r for r in parts.values(Where(parts.torch.device("cpu"))) if "top_k" in r["case"]]
    assert not any(row["ok"] for row in rows)


@pytest.mark.parametrize("word", [["--parts", "valus"], ["--device", "cuda:77"]])
def test_what_is_not_there_is_refused(word: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["gpu-check", *word]) == 2
    assert word[1] in capsys.readouterr().err


@pytest.mark.slow
def test_all_of_it_rehearsed(tmp_path: Path):
    assert main(["gpu-check", "--device", "cpu", "--out", str(tmp_path / "found.json")]) == 0
    assert set(PARTS) == {
        part["name"] for part in json.loads((tmp_path / "found.json").read_text())["parts"]
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["-m", "regkit", "gpu-check", "--device", "cpu", "--parts", *QUICK],
        ["-m", "regkit", "bench", "--model", "synthetic", "--parameters", "1e4", "--rounds", "2"],
        ["-m", "pytest", "-n0", "-p", "no:hydra_pytest", "tests/ops/test_gpu_on_device.py"],
        ["-c", "import regkit; regkit.Regularizer; regkit.RegularizerCallback; regkit.shrink"],
    ],
)
def test_a_machine_with_torch_and_little_else_will_do(words: list[str], tmp_path: Path):
    """The packages that a machine with a GPU may lack are kept from being imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {ABSENT}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "def find_spec(name, package=None):\n"
        f"    return None if name.partition('.')[0] in {ABSENT} else find(name, package)\n"
        "importlib.util.find_spec = find_spec\n"
    )
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(tmp_path), str(root)])
    if "gpu-check" in words:
        words = [*words, "--out", str(tmp_path / "found.json")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=root,
        env=environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
