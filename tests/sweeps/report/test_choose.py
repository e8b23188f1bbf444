"""The choice, against cases worked out by hand."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from regkit.errors import InputError
from regkit.sweeps.report.choose import choose
from regkit.sweeps.report.table import tabulate
from regkit.sweeps.report.text import sentences
from regkit.sweeps.report.write import write_report
from regkit.training.runs import find_runs

Make = Callable[..., Path]


def make_rows(make_run: Make, rows: dict[str, tuple[list[float], float, float]]) -> None:
    """Make runs of rows: {lam: (validation accuracies, density, test accuracy)}."""
    for lam, (accuracies, density, test) in rows.items():
        for seed, accuracy in enumerate(accuracies):
            said = {"val_accuracy": accuracy, "density": density, "test_accuracy": test}
            make_run(f"{lam}-{seed}", f"penalty=l1 lam={lam} seed={seed}", **said)


def test_the_sparsest_within_one_standard_error_is_taken(make_run: Make, tmp_path: Path):
    # The best: 0.7, 0.8, 0.9, deviation 0.1, error 0.1 / sqrt(3) = 0.0577: 0.7423 is enough.
    # Its own deviation, 0.1, would let 0.72 in; the best test, 0.99, is not asked.
    make_rows(
        make_run,
        {
            "0.001": ([0.7, 0.8, 0.9], 0.9, 0.5),
            "0.002": ([0.75, 0.75, 0.75], 0.5, 0.4),
            "0.003": ([0.79, 0.79, 0.79], 0.6, 0.99),
            "0.004": ([0.72, 0.72, 0.72], 0.1, 0.99),
        },
    )
    table = tabulate(find_runs([tmp_path]))
    choice = choose(table.rows)
    assert choice is not None
    assert (choice.best.lam, choice.chosen.lam) == (0.001, 0.002)
    assert choice.error == pytest.approx(0.1 / 3**0.5)
    assert (choice.source, choice.num_within) == ("seeds", 3)
    said = " ".join(sentences(table, choice))
    assert "Best mean validation accuracy: l1 lam=1e-3, 0.800 ± 0.100 (n = 3)." in said
    assert "Of 3 configurations within one standard error of it (0.742 or more)" in said
    assert "the sparsest is taken: l1 lam=2e-3, 0.750 ± 0.000 (n = 3)" in said
    assert "it reached 0.400" in said


@pytest.mark.parametrize(("key", "word"), [("cv_fold", "folds"), ("bootstrap", "samples")])
def test_folds_and_samples_are_called_so(make_run: Make, tmp_path: Path, key: str, word: str):
    """On the page, its pictures' captions included; with several seeds they are runs."""
    for lam, i in product((0.1, 0.2), (1, 2, 3)):
        recipe = {"data": {"_target_": "regkit.data.csv.Csv", key: i}}
        words = f"penalty=l1 lam={lam} data.{key}={i}"
        said = {"val_accuracy": 0.5 + lam * i / 10, "density": lam, "test_accuracy": 0.5}
        curves = {"val/acc": {9: 0.5}}
        make_run(f"{lam} {i}", words, recipe=recipe, curves=curves, layers={"a": 0.1}, **said)
    table = tabulate(find_runs([tmp_path]))
    choice = choose(table.rows)
    assert choice is not None
    assert choice.source == word
    assert f"over 3 {word}, is" in " ".join(sentences(table, choice))
    page = write_report([tmp_path / "runs"]).read_text()
    assert page.count(f"over {word}") + page.count(f"over n {word}") >= 5
    assert not re.search(r"over (\w+ )?seeds", page)
    make_run("again", f"penalty=l1 lam=0.1 data.{key}=1 seed=1", test_accuracy=0.5)
    assert tabulate(find_runs([tmp_path])).repeats == "runs"


def test_one_seed_has_the_error_of_a_share_of_videos(make_run: Make, tmp_path: Path):
    # sqrt(0.75 * 0.25 / 24) = 0.0884, by the 24 validation videos of the recipe
    make_rows(make_run, {"0.1": ([0.75], 0.9, 0.5), "0.2": ([0.67], 0.5, 0.5)})
    choice = choose(tabulate(find_runs([tmp_path])).rows)
    assert choice is not None
    assert (choice.chosen.lam, choice.source) == (0.2, "videos")
    assert choice.error == pytest.approx((0.75 * 0.25 / 24) ** 0.5)


@pytest.mark.parametrize("is_noise", [True, False])
def test_what_the_zeros_of_the_chosen_cost_is_said(make_run: Make, tmp_path: Path, is_noise: bool):
    said = {"val_accuracy": 0.5, "zeros_cost": 0.3, "zeros_cost_is_noise": is_noise}
    make_run("a", "penalty=group_lasso", density=0.3, **said)
    table = tabulate(find_runs([tmp_path]))
    choice = choose(table.rows)
    assert choice is not None
    words = "Its zeros have cost 0.300 of validation accuracy in its own training"
    assert (words in " ".join(sentences(table, choice))) == (not is_noise)


def test_without_any_spread_the_best_is_taken_and_it_is_said(make_run: Make, tmp_path: Path):
    for lam, accuracy in (("0.1", 0.75), ("0.2", 0.74)):
        make_run(lam, f"lam={lam}", recipe={}, val_accuracy=accuracy, density=1 - float(lam))
    table = tabulate(find_runs([tmp_path]))
    choice = choose(table.rows)
    assert choice is not None
    assert (choice.chosen.lam, choice.error) == (0.1, None)
    assert "no spread is known" in " ".join(sentences(table, choice))


def test_a_loss_is_better_when_it_is_less(make_run: Make, tmp_path: Path):
    for lam, losses in (("0.1", (1.0, 1.2)), ("0.2", (0.5, 0.7)), ("0.3", (0.65, 0.69))):
        for seed, loss in enumerate(losses):
            said = {"val_loss": loss, "density": 1 - float(lam)}
            make_run(f"{lam}-{seed}", f"lam={lam} seed={seed}", **said)
    table = tabulate(find_runs([tmp_path]))
    choice = choose(table.rows, "val_loss")
    assert choice is not None
    assert (choice.best.lam, choice.chosen.lam) == (0.2, 0.3)  # 0.6 and an error of 0.1
    assert "0.700 or less" in " ".join(sentences(table, choice))


def test_equal_accuracies_are_equal_whatever_float32_made_of_them(make_run: Make, tmp_path: Path):
    make_rows(make_run, {"0.1": ([0.50000001] * 2, 0.9, 0.5), "0.2": ([0.49999999] * 2, 0.5, 0.5)})
    choice = choose(tabulate(find_runs([tmp_path])).rows)
    assert choice is not None
    assert choice.chosen.lam == 0.2


def test_nothing_validated_is_nothing_chosen(make_run: Make, tmp_path: Path):
    make_run("a", "penalty=l1", val_accuracy=None, test_accuracy=0.9)
    assert choose(tabulate(find_runs([tmp_path])).rows) is None


def test_the_test_may_not_choose():
    with pytest.raises(InputError, match=r"test_accuracy.*one of val_accuracy.*no longer"):
        choose([], "test_accuracy")
