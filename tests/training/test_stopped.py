"""Runs that are told to end, that lose a worker, or whose disk fails: one line, nothing lost."""

import errno
import json
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import TRAIN, Program
from test_fit import run as fit_run

from regkit.errors import InputError
from regkit.training import checkpoints
from regkit.training.keep import KeepCheckpoints
from regkit.training.runs import FolderInUseError, RunFolder, refuse_unwritable
from regkit.training.stop import Stopped, heeding_signals, requeue

QUICK = [
    *("data.num_train=24", "data.num_val=12", "data.num_test=12", "data.num_workers=0"),
    *("data.num_frames=4", "data.size_px=16", "data.batch_size=4", "model.dropout=0.3"),
    *("trainer.accelerator=cpu", "penalty=l1", "lam=0.01"),
]
SHORT = ["penalty=l1", "lam=0.02", "data.num_frames=4", "data.size_px=16", "model.dropout=0.3"]

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, few batches


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "stopped cache"))


def start(folder: Path, *words: str) -> Program:
    return Program(TRAIN, *words, folder=folder, XDG_CACHE_HOME=str(folder / "cache"))


def once(folder: Path, sign: str, process: Program, act: Callable[[], None]) -> None:
    """Act as soon as there is such a file."""
    deadline = time.time() + 200
    while not list(folder.glob(sign)) and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate(1)
    act()


def same(one: Path, two: Path) -> None:
    first, second = (json.loads((path / "summary.json").read_text()) for path in (one, two))
    clocks = {"name", "train_s", "data_share", "debias_s"}
    assert {k: v for k, v in first.items() if k not in clocks} == {
        k: v for k, v in second.items() if k not in clocks
    }
    for name in ("last", "best"):
        ours, theirs = (
            torch.load(path / f"checkpoints/{name}.ckpt", weights_only=True) for path in (one, two)
        )
        for key, weight in ours["state_dict"].items():
            assert torch.equal(weight, theirs["state_dict"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_answered_with_a_checkpoint(tmp_path: Path, signum: int):
    words = [*QUICK, "trainer.max_epochs=6"]
    process = start(tmp_path, *words, "hydra.run.dir=stopped")
    sign = "stopped/checkpoints/last.ckpt"
    once(tmp_path, sign, process, lambda: os.kill(process.pid, signum))
    code, _, err = process.communicate(100)
    assert code == 128 + signum, err
    assert err.endswith("\nregkit: stopped. To go on: regkit train resume=stopped\n")
    place = torch.load(tmp_path / sign, weights_only=True)["place"]
    assert 0 < place["epochs"] < 6
    code, _, err = start(tmp_path, "resume=stopped").communicate(200)
    assert code == 0, err
    code, _, err = start(tmp_path, *words, "hydra.run.dir=whole").communicate(200)
    assert code == 0, err
    same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_sweep_that_was_told_to_end_does_not_look_done(tmp_path: Path):
    words = ["-m", *QUICK, "trainer.max_epochs=5", "seed=0,1", "hydra.sweep.dir=sweep"]
    process = start(tmp_path, *words)
    sign = "sweep/*/checkpoints/last.ckpt"
    once(tmp_path, sign, process, lambda: os.kill(process.pid, signal.SIGTERM))
    code, _, err = process.communicate(100)
    assert code == 143, err
    assert err.endswith("\nregkit: stopped. To go on: regkit train resume=sweep\n")
    assert not list(tmp_path.glob("sweep/*/summary.json"))
    code, _, err = start(tmp_path, "resume=sweep").communicate(300)
    assert code == 0, err
    assert len(list(tmp_path.glob("sweep/*/summary.json"))) == 2


@pytest.mark.parametrize(
    ("at", "calls"),
    [
        ("on_train_batch_end", 2),
        ("on_train_batch_end", 3),
        ("on_train_batch_end", 6),
        ("on_validation_batch_end", 1),
        ("on_validation_batch_end", 2),
    ],
)
def test_a_signal_at_any_batch_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, calls: int
):
    """In the middle of an epoch, at its last batch, in its validation."""
    words = [*SHORT, "data.batch_size=8"]
    fit_run(tmp_path / "whole", *words)
    plain, count = getattr(KeepCheckpoints, at), 0

    def signalled(*given: Any) -> None:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(*given)

    last = tmp_path / "cut/checkpoints/last.ckpt"
    with monkeypatch.context() as patch, heeding_signals():
        patch.setattr(KeepCheckpoints, at, signalled)
        with pytest.raises(Stopped) as stop:
            fit_run(tmp_path / "cut", *words)
    assert stop.value.code == 143
    place = torch.load(last, weights_only=True)["place"]
    assert place["all_batches"] == {"on_train_batch_end": calls, "on_validation_batch_end": 3}[at]
    fit_run(tmp_path / "cut", *words)
    same(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_that_nobody_waits_for_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with heeding_signals(), pytest.raises(Stopped) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    copied = pickle.loads(pickle.dumps(stop.value))  # as joblib does
    assert (copied.code, copied.signum) == (143, signal.SIGTERM)


def test_slurm_is_asked_for_the_job_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not requeue()
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert not requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert requeue()
    assert (tmp_path / "asked").read_text() == "requeue 12\n"


def test_a_folder_has_one_owner(tmp_path: Path):
    one, two = RunFolder(tmp_path / "a run"), RunFolder(tmp_path / "a run")
    said = r"Another run is at work in .*a run"
    with one.owned(), pytest.raises(FolderInUseError, match=said), two.owned():
        pytest.fail("two owners")
    with two.owned():
        pass


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_and_leaves_the_first_alone(tmp_path: Path):
    words = [*QUICK, "trainer.max_epochs=60", "hydra.run.dir=one"]
    process = start(tmp_path, *words)
    answers = []
    once(
        tmp_path,
        "one/checkpoints/last.ckpt",
        process,
        lambda: answers.append(start(tmp_path, *words, "seed=1").communicate(100)),
    )
    code, _, err = answers[0]
    assert code == 2, err
    assert "Another run is at work in one" in err.splitlines()[-1]
    assert "seed" not in (tmp_path / "one/config/overrides.yaml").read_text()
    assert not (tmp_path / "one/failed.txt").exists()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(10)


def flipped(path: Path, place: float) -> None:
    """Flip a bit of a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 16
    path.write_bytes(content)


def test_a_flipped_bit_is_refused_or_harmless(tmp_path: Path):
    path = tmp_path / "a.ckpt"
    whole = {"state_dict": {f"w{n}": torch.randn(50, 10) for n in range(5)}, "epoch": 3}
    refused = 0
    for place in range(100):
        checkpoints.WholeFiles().save_checkpoint(whole, path)
        flipped(path, place / 100)
        try:
            found = checkpoints.read(path)
        except Exception:
            refused += 1
            continue
        assert found["epoch"] == 3
        assert all(torch.equal(w, found["state_dict"][n]) for n, w in whole["state_dict"].items())
    assert refused > 80


def test_a_damaged_checkpoint_gives_way_to_the_best_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fit_run(tmp_path / "whole", *SHORT, "trainer.max_epochs=3")
    fit_run(tmp_path / "cut", *SHORT, "trainer.max_epochs=3")
    for name in ("summary.json", "stages.json"):
        (tmp_path / "cut" / name).unlink()
    flipped(tmp_path / "cut/checkpoints/last.ckpt", 0.5)
    fit_run(tmp_path / "cut", *SHORT, "trainer.max_epochs=3")
    told = capsys.readouterr().out
    assert "last.ckpt (ValueError: the checksum of" in told
    assert "The run goes on from" in told
    same(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/stages.json").unlink()
    for name in ("last", "best"):
        flipped(tmp_path / f"cut/checkpoints/{name}.ckpt", 0.5)
    with pytest.raises(InputError, match=r"last\.ckpt .* and .*best\.ckpt .*damaged"):
        fit_run(tmp_path / "cut", *SHORT, "trainer.max_epochs=3")


def test_what_follows_training_is_asked_for_later(tmp_path: Path):
    """Or again, where its marks are gone; and a training is never cut short."""
    first = fit_run(tmp_path, *SHORT)
    (tmp_path / "summary.json").unlink()
    assert fit_run(tmp_path, *SHORT) == first
    (tmp_path / "stages.json").unlink()
    written = (tmp_path / "checkpoints/last.ckpt").stat().st_mtime_ns
    assert fit_run(tmp_path, *SHORT) == first
    more = fit_run(tmp_path, *SHORT, "shrink=true")
    assert first.items() <= more.items()
    assert "shrunk_accuracy" in more
    assert (tmp_path / "checkpoints/last.ckpt").stat().st_mtime_ns == written
    (tmp_path / "stages.json").write_text('{"recipe": ')
    with pytest.raises(InputError, match=r"stages\.json is damaged"):
        fit_run(tmp_path, *SHORT)


def test_what_torch_says_of_a_full_disk_is_not_what_is_told(tmp_path: Path):
    """It closes the file after the error, and its own complaint would hide that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoint = {"state_dict": {f"w{n}": torch.zeros(100_000) for n in range(4)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.WholeFiles().save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = [*SHORT, "trainer.max_epochs=3"]
    fit_run(tmp_path / "whole", *words)
    plain, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            fit_run(tmp_path / "cut", *words)
    assert count == 4
    names = {path.name for path in (tmp_path / "cut/checkpoints").iterdir()}
    assert names <= {"last.ckpt", "best.ckpt"}
    fit_run(tmp_path / "cut", *words)
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_lost_worker_ends_the_run_and_names_its_file(tmp_path: Path):
    words = [*QUICK, "data.num_workers=1", "data.timeout_s=3", "trainer.max_epochs=500"]
    process = start(tmp_path, *words, "hydra.run.dir=one")

    def act() -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    once(tmp_path, "one/checkpoints/last.ckpt", process, act)
    code, _, err = process.communicate(60)
    assert code == 2, err
    line = err.splitlines()[-1]
    assert line.startswith("regkit: A process that reads videos was lost"), err
    assert ".mp4" in line


def test_a_folder_that_cannot_be_written_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only disk
    with pytest.raises(InputError, match=r"hydra\.run\.dir=.*new/run was given; give a folder to"):
        refuse_unwritable(tmp_path / "new" / "run")
