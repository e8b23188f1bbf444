"""What a refused run may remove: what it has made itself, and nothing else."""

from pathlib import Path

import pytest

from regkit.training.runs import RunFolder


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out what Hydra leaves when a job begins, and stand in the folder above runs."""
    (tmp_path / "runs/one/config").mkdir(parents=True)
    for name in ("config/config.yaml", "config/hydra.yaml", "config/overrides.yaml", "train.log"):
        (tmp_path / "runs/one" / name).touch()
    monkeypatch.chdir(tmp_path)
    return Path("runs/one")


def test_a_run_that_was_refused_leaves_nothing(begun: Path):
    run = RunFolder(begun)
    assert run.is_fresh()
    (begun / "events.out").touch()  # of a run that went on for a while
    assert not run.is_trained()
    run.discard()
    assert not list(Path.cwd().iterdir())


def test_the_folder_above_stays_where_another_run_lies_in_it(begun: Path):
    (begun.parent / "another").mkdir()
    RunFolder(begun).discard()
    assert [path.name for path in begun.parent.iterdir()] == ["another"]


@pytest.mark.parametrize("name", ["mine.log", "config/mine.yaml", "a folder/x", "summary.json"])
def test_a_folder_that_holds_anything_else_is_not_fresh(begun: Path, name: str):
    (begun / name).parent.mkdir(exist_ok=True)
    (begun / name).touch()
    assert not RunFolder(begun).is_fresh()


def test_the_folder_that_one_stands_in_is_never_removed(
    begun: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(begun.parent)
    run = RunFolder(Path("one"))
    assert run.is_fresh()
    run.discard()
    assert Path.cwd().is_dir()
    Path("two/config").mkdir(parents=True)
    monkeypatch.chdir("two")
    assert not RunFolder(Path.cwd()).is_fresh()


def test_a_checkpoint_is_what_training_has_come_to(begun: Path):
    (begun / "checkpoints").mkdir()
    (begun / "checkpoints/last.ckpt").touch()
    assert RunFolder(begun).is_trained()
