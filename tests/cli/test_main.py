"""The command line as a user meets it: verbs, help, and errors of one line."""

import subprocess
import sys

import pytest

from regkit import __version__
from regkit.cli.main import RUNS, VERBS, main
from regkit.errors import InputError


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "regkit", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_error_is_one_line_and_no_traceback():
    done = call("bench", "--penalties", "l3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("regkit: --penalties got 'l3'; give any of box, ")
    assert done.stderr.count("\n") == 1


def test_help_lists_the_verbs():
    done = call("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n    {name} " in done.stdout for name in [*RUNS, *VERBS] if len(name) < 9)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"regkit {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"regkit {verb} [-h]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: verb"),
        (["shrimp"], "invalid choice: 'shrimp'"),
        (["bench", "--speed", "9"], "unrecognized arguments: --speed 9"),
        (["bench", "--lam", "much"], "invalid float value: 'much'"),
        (["bench", "--rounds"], "expected one argument"),
    ],
)
def test_what_the_parser_refuses(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert "--help says what there is" in err


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("regkit.cli.bench.run", interrupted)
    assert main(["bench"]) == 130
    assert capsys.readouterr().err == "\nregkit: interrupted.\n"


def test_an_error_of_several_lines_is_made_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refused(args: object) -> None:
        raise InputError("The model said:\n  no.")

    monkeypatch.setattr("regkit.cli.bench.run", refused)
    assert main(["bench"]) == 2
    assert capsys.readouterr().err == "regkit: The model said: no.\n"
