"""The verb as a whole: table, file and picture."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from regkit.__main__ import main
from regkit.benchmarks.harness import read
from regkit.benchmarks.step import candidates, report
from regkit.benchmarks.step.candidates import (
    FOREACH,
    FUSED,
    HOOK,
    NAIVE,
    NAIVE_ITEM,
    PROX,
    Contestant,
    penalty_types,
)
from regkit.benchmarks.step.report import Report, Row
from regkit.benchmarks.step.rounds import HOST_TENSORS, row_of
from regkit.cli import bench as command
from regkit.penalties import GroupPenalty
from regkit.timing import Quartiles, cpu_name

TINY = [
    *("--model", "synthetic", "--parameters", "1e4", "--clip", "4x16x16"),
    *("--rounds", "2", "--warmup", "1", "--train-rounds", "1"),
]
HOST_NAMES = ("l1", "group_lasso filter")
BASELINES = [FUSED, FOREACH, NAIVE, NAIVE_ITEM]


def bench(*arguments: str) -> int:
    return main(["bench", *TINY, *arguments])


def shown(out: str) -> list[str]:
    """Return the names in the table."""
    rows = out.split("of training\n")[1].split("\n\n")[0].splitlines()
    return [row[: report.WIDTH].strip() for row in rows]


def test_a_run_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, picture = tmp_path / "run.json", tmp_path / "run.png"
    assert (
        bench("--penalties", "l1", "group_lasso", "--out", str(out), "--picture", str(picture)) == 0
    )
    printed, err = capsys.readouterr()
    assert err == ""
    ours = [f"{p}, {c}" for p in ("l1", "group_lasso filter") for c in (HOOK, PROX)]
    assert shown(printed) == [*BASELINES, *ours]

    written = json.loads(out.read_text())
    assert {"cpu", "device", "threads", "torch", "triton", "date"} <= set(written["machine"])
    assert written["options"]["lam"] == 1e-6
    assert written["options"]["rounds"] == 2
    found = read(Report, out)
    assert found.num_parameters == sum(
        p.numel() for p in candidates.make_net("synthetic", 1e4).parameters()
    )
    assert [row.label for row in found.rows] == shown(printed)
    assert [(row.num_tensors, row.penalty, row.contestant) for row in found.host] == [
        (num, penalty, contestant)
        for num in HOST_TENSORS
        for penalty, contestants in ((None, [FUSED]), *((p, [HOOK, PROX]) for p in HOST_NAMES))
        for contestant in contestants
    ]
    assert all(row.us.median > 0 for row in found.host)
    assert found.host[0].to_fused == Quartiles(1.0, 1.0, 1.0)
    assert "time of the host" in printed
    assert found.rows[0].to_fused == {"wall": Quartiles(1.0, 1.0, 1.0)}
    for row in found.rows:
        assert row.training_ms is not None
        assert row.share == row.ms["wall"].median / row.training_ms
        assert row.num_bytes / row.gb_s / 1e6 == pytest.approx(row.ms["wall"].median)
    assert picture.read_bytes().startswith(b"\x89PNG")

    again, redrawn = tmp_path / "again.json", tmp_path / "again.svg"
    assert main(["bench", "--read", str(out), "--out", str(again), "--picture", str(redrawn)]) == 0
    assert capsys.readouterr().out == printed
    assert again.read_text() == out.read_text()
    for text in ("l1", "group_lasso filter", "foreach", "AdamW"):
        assert text in redrawn.read_text()


def test_a_picture_of_a_gpu_shows_its_wall_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("regkit.benchmarks.step.rounds.count_launches", lambda step: 7)
    monkeypatch.setattr("regkit.benchmarks.step.rounds.count_syncs", lambda step: 3)
    assert bench("--penalties", "l1", "--out", str(tmp_path / "run.json")) == 0
    found = read(Report, tmp_path / "run.json")
    cuda = torch.device("cuda")

    def on_gpu(row: Row) -> Row:
        times = [{"gpu": ms, "host": 3 * ms, "wall": 4 * ms} for ms in (1.0, 2.0)]
        samples = {FUSED: times, FOREACH: times, row.contestant: times}
        c = Contestant(row.contestant, nn.Identity(), int, row.num_bytes)
        return row_of(row.penalty, c, samples, [], found.rate, cuda)

    machine = found.machine | {"cuda": True, "device": "some GPU"}
    found = replace(found, machine=machine, rows=[on_gpu(row) for row in found.rows])
    command.draw(found, tmp_path / "run.svg")
    drawn = (tmp_path / "run.svg").read_text()
    assert "wall time, host included" in drawn
    assert "GPU time of one optimizer step" in drawn


def test_all_penalties_run_and_misfits_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """No layer of this net has hidden units that a recurrence ties together."""
    out = tmp_path / "run.json"
    assert bench("--groups", "filter", "hidden_unit", "--train-rounds", "0", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    ours = [name for name in shown(printed) if name.endswith(f", {HOOK}")]
    assert len(ours) == sum(not kind.joint for kind in penalty_types().values())
    grouped = [n for n, kind in penalty_types().items() if issubclass(kind, GroupPenalty)]
    for name in grouped:
        assert f"{name} filter, {HOOK}" in ours
        assert f"Left out: {name} hidden_unit. " in printed
    assert len(read(Report, out).left_out) == len(grouped)
    assert all(row.share is None for row in read(Report, out).rows)


def test_the_processor_is_named(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_name(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert cpu_name(tmp_path / "absent") != ""


def test_threads_are_set(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert bench("--penalties", "l1", "--threads", "3") == 0
    assert asked == [3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu(tmp_path: Path):
    out = tmp_path / "run.json"
    assert bench("--penalties", "l1", "group_lasso", "--device", "cuda", "--out", str(out)) == 0
    rows = {row.label: row for row in read(Report, out).rows}
    assert list(rows[FUSED].ms) == ["gpu", "host", "wall"]
    tensors = read(Report, out).num_tensors
    launches = {name: row.launches for name, row in rows.items() if row.launches is not None}
    assert launches.keys() == rows.keys()
    assert 0 < launches[FUSED] < launches[NAIVE] < launches[NAIVE_ITEM]
    assert rows[FUSED].syncs == rows[NAIVE].syncs == 0
    assert rows[NAIVE_ITEM].syncs == tensors
