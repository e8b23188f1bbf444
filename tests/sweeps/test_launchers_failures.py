"""What becomes of jobs when one of them goes down, and on which GPU they run."""

import multiprocessing
import time
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from toy_sweep import start

from regkit.sweeps.launch import launch, own_gpu
from regkit.training.runs import RunFolder


class Fragile(Launcher):
    """Runs jobs until the process of one is lost, and then gives up, as joblib does."""

    def __init__(self, folder: Path, ends: dict[str, str]):
        self.folder, self.ends = folder, ends
        self.launched: list[tuple[int, list[str]]] = []

    def setup(self, **_):
        raise NotImplementedError

    def launch(self, job_overrides, initial_job_idx):
        self.launched.append((initial_job_idx, [job[0] for job in job_overrides]))
        results = []
        for (name,) in job_overrides:
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            end = self.ends.get(name, "done")
            if end == "lost":
                raise RuntimeError("a worker was terminated\nin some way")
            if end == "failed":
                (folder / "failed.txt").write_text("ValueError: no\n\ntrace")
                error = ValueError("no")
                results.append(JobReturn([name], status=JobStatus.FAILED, _return_value=error))
                continue
            (folder / "summary.json").write_text("{}")
            results.append(JobReturn([name], status=JobStatus.COMPLETED, _return_value=0.5))
        return results


def outcomes(launcher: Fragile, names: str, first: int = 0) -> list[str]:
    folders = [launcher.folder / name for name in names]
    results = launch(launcher, [[name] for name in names], first, folders)
    assert [list(result.overrides or []) for result in results] == [[name] for name in names]
    return ["done" if r.status == JobStatus.COMPLETED else str(r._return_value) for r in results]


def test_jobs_that_end_are_launched_once(tmp_path: Path):
    launcher = Fragile(tmp_path, {"b": "failed"})
    assert outcomes(launcher, "abc") == ["done", "no", "done"]
    assert launcher.launched == [(0, ["a", "b", "c"])]


def test_what_a_lost_job_took_down_is_launched_again_alone(tmp_path: Path):
    launcher = Fragile(tmp_path, {"b": "failed", "c": "lost"})
    found = outcomes(launcher, "abcde", first=7)
    assert found[:2] == ["done", "ValueError: no"]
    assert found[3:] == ["done", "done"]
    assert "a worker was terminated" in found[2]
    assert launcher.launched == [(7, list("abcde")), (9, ["c"]), (10, ["d"]), (11, ["e"])]


def test_an_old_failure_is_not_taken_for_a_new_one(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "failed.txt").write_text("ValueError: of yesterday")
    launcher = Fragile(tmp_path, {"a": "lost"})
    assert outcomes(launcher, "ab")[1] == "done"


def _hold(folder: Path) -> None:
    with RunFolder(folder).owned(-1.0), (folder / "log.txt").open("a") as log:
        log.write("in ")
        log.flush()
        time.sleep(0.3)
        log.write("out ")


def test_a_job_waits_for_its_double(tmp_path: Path):
    fork = multiprocessing.get_context("fork")
    doubles = [fork.Process(target=_hold, args=(tmp_path,)) for _ in range(3)]
    for double in doubles:
        start(double)
    for double in doubles:
        double.join(60)
    assert (tmp_path / "log.txt").read_text() == "in out " * 3


@pytest.mark.parametrize(
    ("visible", "gpus"), [("0,1", ["0", "1", "0"]), ("3", ["3"] * 3), ("", [""] * 3)]
)
def test_jobs_take_turns_on_the_gpus(monkeypatch, visible: str, gpus: list[str]):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [own_gpu(number) for number in range(3)] == gpus


def test_without_a_choice_all_gpus_are_there(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [own_gpu(number) for number in range(3)] == ["0", "1", "0"]
