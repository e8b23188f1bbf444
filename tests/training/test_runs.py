"""Folders of runs, written by hand, are read as the contract of train.py says."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from regkit.errors import InputError
from regkit.training.runs import curves, find_runs, group_norms, read_run

CONFIG = """\
data: {_target_: regkit.data.made.SyntheticMotion, seed: "${seed}", num_val: 24}
penalty: {l1: {lam: "${lam}"}}
lam: 0.001
seed: 3
name: "${run_name:${penalty},${lam},${hydra:overrides.task}}"
"""


def make(folder: Path, **files: str) -> Path:
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.yaml").write_text(files.pop("config", CONFIG))
    (folder / "config" / "overrides.yaml").write_text("- penalty=l1\n- lam=0.001\n- seed=3\n")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_run_says_what_it_was(tmp_path: Path):
    run = read_run(make(tmp_path / "a", summary_json='{"name": "l1 seed=3", "density": null}'))
    assert run.status == "done"
    assert run.summary == {"name": "l1 seed=3", "density": None}
    assert run.overrides == ["penalty=l1", "lam=0.001", "seed=3"]
    assert run.recipe["data"] == {
        "_target_": "regkit.data.made.SyntheticMotion",
        "seed": 3,
        "num_val": 24,
    }
    assert run.recipe["penalty"] == {"l1": {"lam": 0.001}}
    assert run.name == "l1 seed=3"


@pytest.mark.parametrize("written", ["${mine:2}", "${oc.env:HOME}"])
def test_no_resolver_runs_where_a_run_is_read(tmp_path: Path, written: str):
    """The user's own is not known here, and a stranger's may read the environment."""
    run = read_run(make(tmp_path / "a", config=f'seed: 3\nlr: "{written}"\n'))
    assert run.recipe == {"seed": 3, "lr": written}


def test_what_became_of_a_run(tmp_path: Path):
    message = "InputError: lam is no number.\nGive one."
    trace = f"{message}\n\nTraceback (most recent call last):\n  File ..."
    cases = {
        "done": make(tmp_path / "1", summary_json="{}"),
        "pruned": make(tmp_path / "2", summary_json='{"pruned": true}'),
        "failed": make(tmp_path / "3", failed_txt=trace),
        "unfinished": make(tmp_path / "4"),
    }
    runs = {status: read_run(folder) for status, folder in cases.items()}
    assert {status: run.status for status, run in runs.items()} == {s: s for s in cases}
    assert {s: run.message for s, run in runs.items() if run.message} == {"failed": message}


@pytest.mark.parametrize("text", ["{", "[1]", '"a"', ""])
def test_a_broken_summary_is_a_failed_run_that_says_so(tmp_path: Path, text: str):
    make(tmp_path / "good", summary_json="{}")
    make(tmp_path / "bad", summary_json=text)
    bad, good = find_runs([tmp_path])
    assert (bad.status, good.status) == ("failed", "done")
    assert "summary.json cannot be read" in bad.message


def test_a_broken_config_is_a_failed_run_that_says_so(tmp_path: Path):
    run = read_run(make(tmp_path / "a", config="a: [", summary_json="{}"))
    assert run.status == "failed"
    assert "config/config.yaml cannot be read" in run.message


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path):
    for name in ("sweep/b", "sweep/a", "path/lam=1e-4", "path/lam=1e-3", "x/y/z/deep"):
        make(tmp_path / name, summary_json="{}")
    make(tmp_path / "path" / "killed")
    (tmp_path / "sweep" / "multirun.yaml").write_text("")
    # A path has a configuration, and points; it is no run of its own.
    (tmp_path / "path" / "config").mkdir()
    (tmp_path / "path" / "config" / "config.yaml").write_text(CONFIG)
    for aside in ("report", "comparison", "checkpoints", ".hidden"):
        make(tmp_path / "sweep" / aside / "no", summary_json="{}")
    names = ["path/killed", "path/lam=1e-3", "path/lam=1e-4", "sweep/a", "sweep/b", "x/y/z/deep"]
    assert [str(run.folder.relative_to(tmp_path)) for run in find_runs([tmp_path])] == names
    again = find_runs([tmp_path / "sweep" / "b", tmp_path / "sweep", tmp_path / "sweep"])
    assert [run.folder.name for run in again] == ["b", "a"]


def test_a_run_that_holds_others_is_one_too(tmp_path: Path):
    make(tmp_path / "whole", summary_json="{}")
    make(tmp_path / "whole" / "member", summary_json="{}")
    assert [run.folder.name for run in find_runs([tmp_path])] == ["whole", "member"]


def test_folders_without_runs_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(InputError, match="does not exist"):
        find_runs([tmp_path / "none"])
    with pytest.raises(InputError, match="is a file"):
        find_runs([tmp_path / "other" / "notes.txt"])
    with pytest.raises(InputError, match=r"holds no run.*empty"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(InputError, match=r"holds no run.*notes\.txt"):
        find_runs([tmp_path / "other"])


def write_curve(folder: Path, tag: str, points: dict[int, float], purge: int | None = None) -> None:
    with SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{purge or 0}") as writer:
        for step, value in points.items():
            writer.add_scalar(tag, value, step)


def test_a_later_event_file_takes_over_from_where_it_starts(tmp_path: Path):
    run = read_run(make(tmp_path / "a", summary_json="{}"))
    assert curves(run) == {}
    write_curve(run.folder, "val/acc", {1: 0.125, 2: 0.25, 3: 0.5, 4: 0.75})
    write_curve(run.folder, "val/acc", {3: 0.375, 5: 1.0}, purge=3)
    (found,) = curves(run).items()
    tag, (steps, values) = found
    assert tag == "val/acc"
    assert steps.tolist() == [1, 2, 3, 5]
    assert values.tolist() == [0.125, 0.25, 0.375, 1.0]


def test_no_point_of_a_long_curve_is_dropped(tmp_path: Path):
    run = read_run(make(tmp_path / "a", summary_json="{}"))
    write_curve(run.folder, "objective/total", {step: float(step) for step in range(3000)})
    steps, values = curves(run)["objective/total"]
    assert np.array_equal(steps, np.arange(3000))
    assert np.array_equal(values, np.arange(3000.0))


def test_a_cut_event_file_gives_what_came_before(tmp_path: Path):
    run = read_run(make(tmp_path / "a"))
    write_curve(run.folder, "val/acc", {step: 0.5 for step in range(20)})
    (path,) = run.folder.glob("events*")
    path.write_bytes(path.read_bytes()[:-20])
    steps, _ = curves(run)["val/acc"]
    assert 10 < len(steps) < 20


def test_group_norms(tmp_path: Path):
    run = read_run(make(tmp_path / "a", summary_json=json.dumps({})))
    assert group_norms(run) == {}
    np.savez(run.folder / "groups.npz", **{"net.head.weight": np.float32([0.0, 2.5])})
    assert {name: rows.tolist() for name, rows in group_norms(run).items()} == {
        "net.head.weight": [0.0, 2.5]
    }
    (run.folder / "groups.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"groups\.npz cannot be read"):
        group_norms(run)
