"""What the verb refuses: one line, before anything is measured."""

from pathlib import Path

import pytest
import torch

from regkit.__main__ import main
from regkit.benchmarks.harness import read
from regkit.benchmarks.step.report import Rate, Report
from regkit.cli import bench as command
from regkit.errors import InputError

TINY = [
    *("--model", "synthetic", "--parameters", "1e4", "--clip", "4x16x16"),
    *("--rounds", "2", "--warmup", "1", "--train-rounds", "1"),
]


def bench(*arguments: str) -> int:
    return main(["bench", *TINY, *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "r4d"], "--model got 'r4d'; it is one of mc3_18, mvit_v1_b"),
        (["--parameters", "10"], "--parameters got 10; give a number >= 1e4"),
        (["--parameters", "nan"], "--parameters got nan; give a number >= 1e4"),
        (["--penalties", "l1", "l3"], "--penalties got 'l3'; give any of box"),
        (["--groups", "colour"], "--groups got 'colour'; give any of filter, in_channel"),
        (
            ["--penalties", "group_lasso", "--groups", "hidden_unit"],
            "GroupLasso got groups='hidden_unit'",
        ),
        (["--penalties", "l1", "--lam", "-1"], "L1 got lam=-1.0"),
        (["--device", "tpu"], "--device got 'tpu'; here it is one of cpu"),
        (["--rounds", "1"], "--rounds got 1; give 2 or more"),
        (["--warmup", "0"], "--warmup got 0; give 1 or more"),
        (["--train-rounds", "-1"], "--train-rounds got -1; give 0 or more"),
        (["--batch", "0"], "--batch got 0; give 1 or more"),
        (["--threads", "0"], "--threads got 0; give 1 or more"),
        (["--clip", "8x64"], "--clip got '8x64'; give frames x height x width"),
        (["--clip", "8x0x64"], "--clip got '8x0x64'; give frames x height x width"),
        (["--model", "s3d"], "--clip got 4x16x16, which the model does not take"),
        (["--out", "/no/such/folder/run.json"], "--out got /no/such/folder/run.json"),
        (["--out", "/"], "--out got /, which is a folder"),
        (["--picture", "run.bmp"], "--picture got run.bmp; give a file that ends in .png"),
        (["--read", "/no/such/run.json"], "--read got /no/such/run.json, which is no file that"),
        (["--read", __file__], "which is no file that --out wrote (JSONDecodeError"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert bench(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"regkit: {said}") or said in err


def test_a_file_of_other_figures_is_refused(tmp_path: Path):
    (tmp_path / "other.json").write_text('{"rows": [{"ms": 3}], "rate": {}}')
    with pytest.raises(InputError, match=r"--read got .*other\.json, which is no file that"):
        read(Report, tmp_path / "other.json")


def test_too_little_memory_is_said_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    free = tmp_path / "meminfo"
    free.write_text("MemTotal:       8000 kB\nMemAvailable:    100 kB\n")
    assert command._free_memory(free) == 102_400
    assert command._free_memory(tmp_path / "absent") is None
    monkeypatch.setattr(command, "_free_memory", lambda path: 102_400)
    assert bench() == 2
    assert "--model needs 0.0 GiB for" in capsys.readouterr().err


def test_a_device_that_runs_out_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(num_entries: int, device: torch.device) -> Rate:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee ...")

    monkeypatch.setattr(command, "measure_rate", full)
    assert bench("--penalties", "l1") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--device cpu has too little memory (CUDA out of memory. Tried" in err
