"""The table, against numbers worked out by hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from regkit.sweeps.report.table import PREPARING, Table, tabulate
from regkit.sweeps.report.text import common, number, spread
from regkit.training.config import WATCHING
from regkit.training.runs import find_runs

CONFIGS = Path(__file__).parents[3] / "configs"
Make = Callable[..., Path]


def table_of(folder: Path) -> Table:
    return tabulate(find_runs([folder]))


def test_seeds_are_one_row_and_their_spread_is_right(make_run: Make, tmp_path: Path):
    # Of 0.2, 0.4, 0.9: mean 0.5, squares of differences 0.09 + 0.01 + 0.16 = 0.26, so the
    # deviation is sqrt(0.26 / 2) = sqrt(0.13), and the error sqrt(0.13 / 3).
    for seed, accuracy in enumerate((0.2, 0.4, 0.9)):
        make_run(f"a{seed}", f"penalty=l1 lam=0.001 seed={seed}", test_accuracy=accuracy)
    make_run("b", "penalty=l1 lam=0.01 seed=0", test_accuracy=0.7)
    first, second = table_of(tmp_path).rows
    assert (first.penalty, first.lam, first.seeds) == ("l1", 0.001, [0, 1, 2])
    found = first.spread("test_accuracy")
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.deviation == pytest.approx(0.13**0.5)
    assert found.error == pytest.approx((0.13 / 3) ** 0.5)
    alone = second.spread("test_accuracy")
    assert alone is not None
    assert (alone.mean, alone.deviation, alone.error) == (0.7, None, None)


def test_words_for_one_number_are_one_and_order_is_nothing(make_run: Make, tmp_path: Path):
    make_run("a", "penalty=l1 lam=1e-3 seed=0 optimizer.lr=0.001", density=0.5)
    make_run("b", "optimizer.lr=1e-3 lam=0.001 penalty=l1 seed=1", density=0.7)
    make_run("c", "optimizer.lr=1e-2 lam=0.001 penalty=l1 seed=1", density=0.7)
    assert [row.seeds for row in table_of(tmp_path).rows] == [[1], [0, 1]]


def test_rows_come_by_penalty_then_strength_none_first(make_run: Make, tmp_path: Path):
    asked = ["l1 lam=0.01", "l1 lam=0.0001", "group_lasso lam=0.1", "none", "l1 lam=0.001"]
    for i, words in enumerate(asked):
        make_run(str(i), f"penalty={words}", density=1.0)
    rows = [(row.penalty, row.lam) for row in table_of(tmp_path).rows]
    weak_to_strong = [("l1", 0.0001), ("l1", 0.001), ("l1", 0.01)]
    assert rows == [("none", 0.0), ("group_lasso", 0.1), *weak_to_strong]


def test_without_penalty_the_strength_is_nothing_and_a_repeat_counts_once(
    make_run: Make, tmp_path: Path
):
    old = make_run("old", "penalty=none lam=0.1 seed=0", test_accuracy=0.1)
    make_run("new", "penalty=none lam=0.2 seed=0", test_accuracy=0.9)
    os.utime(old / "summary.json", (1, 1))
    table = table_of(tmp_path)
    (row,) = table.rows
    assert row.mean("test_accuracy") == 0.9
    assert [run.folder.name for run in table.repeated] == ["old"]


@pytest.mark.parametrize("key", ["fold", "cv_fold", "bootstrap"])
def test_folds_and_samples_are_repeats_and_not_settings(make_run: Make, tmp_path: Path, key: str):
    for i in (1, 2, 3):
        recipe = {"data": {"_target_": "regkit.data.csv.Csv", key: i}}
        make_run(str(i), f"data.{key}={i} seed=0", recipe=recipe, test_accuracy=i / 4)
    table = table_of(tmp_path)
    (row,) = table.rows
    assert (row.mean("test_accuracy"), len(table.by_data)) == (0.5, 1)
    assert row.setting(f"data.{key}") == "1,2,3"


def test_a_fit_to_all_videos_is_no_fold(make_run: Make, tmp_path: Path):
    for fold in (0, 1, 2):
        recipe = {"data": {"_target_": "regkit.data.csv.Csv", "cv_fold": fold}}
        make_run(str(fold), f"data.cv_fold={fold} seed=0", recipe=recipe, test_accuracy=0.5)
    table = table_of(tmp_path)
    assert {table.settings(row) for row in table.rows} == {
        ("data.cv_fold=0",),
        ("data.cv_fold=1,2",),
    }


def test_only_what_differs_is_a_column(make_run: Make, tmp_path: Path):
    make_run("a", "penalty=l1 lam=0.1 data.num_train=96 trainer.max_epochs=6", epochs=6)
    make_run("b", "penalty=l1 lam=0.1 data.num_train=48 trainer.max_epochs=6", epochs=6)
    table = table_of(tmp_path)
    assert table.varying == ["data.num_train"]
    assert [row.setting("data.num_train") for row in table.rows] == ["48", "96"]
    assert common(table) == "model tiny3d, data made, optimizer AdamW, 6 epochs"


def test_a_setting_that_was_not_asked_for_is_read_from_the_recipe(make_run: Make, tmp_path: Path):
    make_run("a", "penalty=l1 data.num_train=48 model=r3d_18", density=1.0)
    make_run("b", "penalty=l1", density=1.0)
    table = table_of(tmp_path)
    assert table.varying == ["data.num_train", "model"]
    asked = {table.settings(row) for row in table.rows}
    assert asked == {("data.num_train=48", "model=r3d_18"), ("data.num_train=96", "model=tiny3d")}


def test_other_videos_are_another_group(make_run: Make, tmp_path: Path):
    other = {"data": {"_target_": "regkit.data.folder.Folder", "root": "films", "size_px": 64}}
    make_run("a", "penalty=l1", density=1.0)
    make_run("b", "data=folder data.root=films", recipe=other, density=1.0)
    assert len(table_of(tmp_path).by_data) == 2


def test_other_clips_of_the_same_videos_are_none(make_run: Make, tmp_path: Path):
    for size in (32, 64):
        recipe = {"data": {"_target_": "regkit.data.folder.Folder", "size_px": size, "seed": size}}
        make_run(str(size), f"data.size_px={size}", recipe=recipe, density=1.0)
    assert list(table_of(tmp_path).by_data) == [""]


def test_unfinished_runs_stand_apart(make_run: Make, tmp_path: Path):
    make_run("killed", "penalty=l1")
    make_run("pruned", "penalty=l1", density=0.1, pruned=True)
    make_run("done", "penalty=l1", density=0.1)
    table = table_of(tmp_path)
    assert [run.folder.name for run in table.apart] == ["killed", "pruned"]
    assert [len(row.runs) for row in table.rows] == [1]


def test_an_auto_strength_may_differ_by_seed(make_run: Make, tmp_path: Path):
    for seed, lam in enumerate((0.1, 0.3)):
        folder = make_run(f"a{seed}", f"penalty=l1 lam=0 seed={seed}", density=0.5)
        (folder / "config" / "overrides.yaml").write_text(f"[penalty=l1, lam=auto, seed={seed}]")
        path = folder / "summary.json"
        path.write_text(path.read_text().replace('"lam": 0.0', f'"lam": {lam}'))
    (row,) = table_of(tmp_path).rows
    assert row.lam == pytest.approx(0.2)


def test_missing_and_infinite_numbers(make_run: Make, tmp_path: Path):
    make_run("a0", "seed=0", objective=float("nan"), density=None, live_groups=3, num_groups=4)
    make_run("a1", "seed=1", objective=1.0, density=0.5, live_groups=1, num_groups=4)
    (row,) = table_of(tmp_path).rows
    assert spread(row.spread("objective")) == "nan"
    assert spread(row.spread("density")) == "0.500"
    assert spread(row.spread("val_accuracy")) == "-"
    assert row.mean("live_share") == 0.5


@pytest.mark.parametrize(
    ("found", "text"), [(38929152.0, "38.9 M"), (71030.0, "71 k"), (2.5e9, "2.5 G"), (12.0, "12")]
)
def test_large_numbers(found: float, text: str):
    assert number(found, "large") == text


def test_the_settings_that_are_named_are_there():
    """A key that the YAML renames would split what belongs together, in silence."""
    clips = set(OmegaConf.load(CONFIGS / "clips.yaml"))
    assert PREPARING - {"fold", "num_train"} == clips
    train = OmegaConf.load(CONFIGS / "train.yaml")
    groups = [path.name for path in CONFIGS.iterdir() if path.is_dir()]
    assert all("." in key or key in [*train, *groups] for key in WATCHING)
