"""The trials that no other beats, against the definition."""

import json
from pathlib import Path

from regkit.sweeps.optuna import Trial, conclude_search


def trial(number: int, values: tuple[float, ...] | None, pruned: bool = False) -> Trial:
    return Trial(number, f"run {number}", [], Path(), values, pruned)


def test_pruned_and_failed_trials_are_counted_and_not_chosen(tmp_path: Path):
    trials = [trial(0, (0.5, 0.2)), trial(1, (0.9, 0.1), pruned=True), trial(2, None)]
    conclude_search(tmp_path, trials, {"val_accuracy": "maximize", "density": "minimize"})
    found = json.loads((tmp_path / "conclusion.json").read_text())
    assert [told["name"] for told in found["front"]] == ["run 0"]
    assert (found["trials"], found["pruned"], found["failed"]) == (3, 1, 1)
    assert "1 trained to the end, 1 pruned, 1 failed" in found["lines"][0]
    assert (tmp_path / found["pictures"][0]).is_file()


def test_one_objective_chooses(tmp_path: Path):
    conclude_search(tmp_path, [trial(0, (0.5,)), trial(1, (0.4,))], {"val_loss": "minimize"})
    found = json.loads((tmp_path / "conclusion.json").read_text())
    assert found["chosen"] == "run 1"
    assert found["pictures"] == []


def test_nothing_but_failures_is_a_conclusion_too(tmp_path: Path):
    conclude_search(tmp_path, [trial(0, None)], {"val_accuracy": "maximize", "density": "minimize"})
    assert json.loads((tmp_path / "conclusion.json").read_text())["front"] == []
