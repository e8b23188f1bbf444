"""Commands say again what was asked for, through a real shell."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regkit.sweeps.report.page import commands, quote
from regkit.sweeps.report.table import tabulate
from regkit.training.runs import find_runs

Make = Callable[..., Path]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=30)


@given(WORDS)
def test_a_quoted_word_is_one_word_again(word: str):
    assert shlex.split(quote(word)) == [word]


@pytest.mark.parametrize(
    "word",
    [
        "data.root='/my films/a=b'",
        "a'$HOME`x`\"!",
        "it's $HOME",
        "penalty=[l1,temporal]",
        "a b",
        "*",
        "",
    ],
)
def test_a_shell_reads_it_so(word: str):
    printed = subprocess.run(
        ["sh", "-c", f"printf %s {quote(word)}"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == word


def test_seeds_go_into_one_command(make_run: Make, tmp_path: Path):
    for seed in (2, 0, 1):
        words = f"penalty=[l1,temporal] lam=0.001 seed={seed} ckpt_path=runs/x/last.ckpt"
        make_run(str(seed), words, density=1.0)
    (row,) = tabulate(find_runs([tmp_path])).rows
    expected = "regkit train 'penalty=[l1,temporal]' lam=0.001 seed=0,1,2 -m"
    assert commands(row) == [expected]


def test_one_run_needs_no_sweep(make_run: Make, tmp_path: Path):
    make_run("a", "penalty=l1 lam=0.001 seed=7", density=1.0)
    make_run("b", "penalty=none", density=1.0)
    without, one = tabulate(find_runs([tmp_path])).rows
    assert commands(one) == ["regkit train penalty=l1 lam=0.001 seed=7"]
    assert commands(without) == ["regkit train penalty=none"]


def test_runs_that_were_asked_for_otherwise_have_their_own(make_run: Make, tmp_path: Path):
    make_run("a", "penalty=l1 seed=0", density=1.0)
    make_run("b", "penalty=l1 seed=1 trainer.enable_progress_bar=false", density=1.0)
    (row,) = tabulate(find_runs([tmp_path])).rows
    assert commands(row) == [
        "regkit train penalty=l1 seed=0",
        "regkit train penalty=l1 seed=1 trainer.enable_progress_bar=false",
    ]


def test_paths_stay_as_they_were_given(make_run: Make, tmp_path: Path):
    folder = make_run("a", "", density=1.0)
    words = ["data=folder", "data.root='/my films/x'", "+a.b=$c"]
    (folder / "config" / "overrides.yaml").write_text(yaml.safe_dump(words))
    (row,) = tabulate(find_runs([tmp_path])).rows
    (command,) = commands(row)
    assert shlex.split(command)[2:] == words


def test_another_config_is_named(make_run: Make, tmp_path: Path):
    folder = make_run("a", "penalty=l1", density=1.0)
    (folder / "config" / "hydra.yaml").write_text("hydra:\n  job:\n    config_name: path\n")
    (row,) = tabulate(find_runs([tmp_path])).rows
    assert commands(row) == ["regkit train -cn path penalty=l1"]


def test_runs_without_overrides_have_no_command(make_run: Make, tmp_path: Path):
    make_run("a", "", density=1.0)
    (row,) = tabulate(find_runs([tmp_path])).rows
    assert commands(row) == []


def test_a_point_of_a_path_is_made_by_the_path(make_run: Make, tmp_path: Path):
    path = make_run("path", "penalty=l1 path.epochs=2 seed=4")
    (path / "config" / "hydra.yaml").write_text("hydra:\n  job:\n    config_name: path\n")
    make_run("path/lam=1e-3", "penalty=l1 path.epochs=2 seed=4 lam=1e-3", density=1.0)
    (row,) = tabulate(find_runs([tmp_path])).rows
    assert commands(row) == ["regkit train -cn path penalty=l1 path.epochs=2 seed=4"]
