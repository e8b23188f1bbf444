"""Commands that make a row of the table again."""

import re
from collections.abc import Sequence

from regkit.sweeps.report.table import Configuration, seed_of
from regkit.training.runs import Run, read_run

# A continued run is made anew from its start; its name follows from the rest.
LEFT_OUT = {"ckpt_path"}
HYDRA, SEED = "config/hydra.yaml", "seed="
PLAIN = re.compile(r"[\w@%+=:,./-]+")


def commands(row: Configuration) -> list[str]:
    """Return what to paste into a shell: one command, or one for each run that was asked otherwise.

    Runs of which no overrides were kept give none.
    """
    asked: dict[tuple[str, ...], list[Run]] = {}
    for run in map(_whole, row.runs):
        if run.overrides:
            asked.setdefault((config_name(run), *_words(run)), []).append(run)
    return [_command(words[0], words[1:], runs) for words, runs in asked.items()]


def quote(word: str) -> str:
    """Quote a word for a POSIX shell, in the quotes that are easiest to read."""
    if PLAIN.fullmatch(word):
        return word
    if "'" not in word:
        return f"'{word}'"
    # Within double quotes these have a meaning, ! in an interactive shell.
    if not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return "'" + word.replace("'", "'\"'\"'") + "'"


def config_name(run: Run) -> str:
    """Return which of the configs/*.yaml a run was made with."""
    path = run.folder / HYDRA
    if not path.is_file():
        return "train"
    found = re.search(r"^\s*config_name: *(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "train"


def _whole(run: Run) -> Run:
    """Return what was asked for: of a point of a path, that is the path."""
    above = run.folder.parent
    own = (run.folder / HYDRA).is_file()
    return read_run(above) if not own and (above / HYDRA).is_file() else run


def _command(config: str, words: Sequence[str], runs: Sequence[Run]) -> str:
    seeds = [str(seed) for run in runs if (seed := seed_of(run)) is not None]
    parts = ["python train.py", *(["-cn", quote(config)] if config != "train" else [])]
    # The seed keeps its place: runs are named by the order of what was asked for.
    parts += [SEED + ",".join(seeds) if word == SEED else quote(word) for word in words]
    return " ".join(parts + ["-m"] * (SEED in words and len(seeds) > 1))


def _words(run: Run) -> list[str]:
    kept = [o for o in run.overrides if o.lstrip("+~").partition("=")[0] not in LEFT_OUT]
    return [SEED if override.startswith(SEED) else override for override in kept]
