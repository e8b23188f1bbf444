"""OptunaSweeper through Hydra, as it is started and as it is killed."""

import json
import time
from pathlib import Path

import pytest
from toy_sweep import begin, reached, run, starts

from regkit.errors import InputError
from regkit.sweeps.optuna import OptunaSweeper
from regkit.sweeps.search import make_sampler

pytest.importorskip("optuna")

SPACE = ("lam=interval(1e-5,1e-1)", "penalty=good,bad")


def begun(folder: Path) -> list[str]:
    """Return the names of jobs, in the order in which they began."""
    return [name for _, name, _ in starts(folder)]


def found(folder: Path) -> dict:
    return json.loads((folder / "sweep" / "conclusion.json").read_text())


def test_failed_jobs_count_and_the_front_is_that_of_the_others(tmp_path: Path):
    words = (*SPACE, "ends=raise", "hydra.sweeper.num_trials=9")
    code, printed = run(tmp_path, *words)
    names = begun(tmp_path)
    good = [name for name in names if name.startswith("good")]
    bad = [name for name in names if name.startswith("bad")]
    assert len(names) == len(set(names)) == 9
    assert good
    assert bad
    assert code == 1
    assert f"{len(bad)} of 9 trials failed" in printed
    assert "ValueError: bad" in printed
    points = {name: reached(float(name.split("lam=")[1]), bad=False) for name in good}
    front = {
        name
        for name, (a, d) in points.items()
        if not any(x > a and y < d for x, y in points.values())  # no two are alike in one
    }
    conclusion = found(tmp_path)
    assert {trial["name"] for trial in conclusion["front"]} == front
    assert conclusion["failed"] == len(bad)
    assert conclusion["chosen"] is None
    assert (tmp_path / "sweep" / "front.png").stat().st_size > 5000
    assert all("ends=raise" in trial["overrides"] for trial in conclusion["front"])

    code, printed = run(tmp_path, SPACE[0], "ends=raise")
    assert code == 2
    assert "asks for something else" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_killed_search_goes_on_as_if_nothing_had_been(tmp_path: Path):
    words = (*SPACE, "hydra.sweeper.num_trials=13", "hydra.sweeper.num_jobs=2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    process = begin(cut, *words, "sleep_s=0.2")
    until = time.monotonic() + 60
    while process.is_alive() and len(begun(cut)) < 6 and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.join()
    before = begun(cut)
    done = {path.parent.name for path in (cut / "sweep").glob("*/summary.json")}
    assert len(before) == 6
    assert set(before) - done == {before[-1]}
    assert run(cut, *words, "sleep_s=0.2")[0] == 0
    again = begun(cut)[6:]
    assert again[0] == before[-1]
    assert not set(again) & done
    assert run(whole, *words, "sleep_s=0.0")[0] == 0
    assert [*before, *again[1:]] == begun(whole)
    drop = [{**t, "overrides": None} for t in found(cut)["front"]]
    assert drop == [{**t, "overrides": None} for t in found(whole)["front"]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_trials": 0}, "num_trials=0"),
        ({"num_jobs": 0}, "num_jobs=0"),
        ({"sampler": "grid"}, "there are: tpe, nsga2, random"),
        ({"objectives": {"density": "down"}}, "maximize or minimize"),
        ({"objectives": {"test_accuracy": "maximize"}}, "must not choose"),
    ],
)
def test_options_are_checked(options: dict, says: str):
    with pytest.raises(InputError, match=says):
        OptunaSweeper(**options)._check()


def test_an_objective_that_no_summary_has_is_told():
    sweeper = OptunaSweeper(objectives={"val_acuracy": "maximize"})
    assert sweeper._values({}) is None
    with pytest.raises(InputError, match=r"val_acuracy.*there are: val_accuracy"):
        sweeper._values({"val_accuracy": 0.5})


def test_what_is_no_number_is_a_failure():
    sweeper = OptunaSweeper()
    assert sweeper._values({"val_accuracy": None, "density": 0.1}) is None
    assert sweeper._values({"val_accuracy": float("nan"), "density": 0.1}) is None
    assert sweeper._values({"val_accuracy": 1, "density": 0.1}) == [1.0, 0.1]


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_samplers_draw_alike_after_a_restart(name: str):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = []
    for _ in range(2):
        study = optuna.create_study(directions=["maximize", "minimize"])
        for number in range(30):
            study.sampler = make_sampler(name, 0, number, 30)
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            study.tell(trial, (trial.params["x"], (trial.params["x"] - 0.5) ** 2))
        drawn.append([trial.params["x"] for trial in study.trials])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 30
