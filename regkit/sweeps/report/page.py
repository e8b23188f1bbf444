"""The page: one file that holds everything, pictures too, and asks nothing of the net."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from regkit.sweeps.report.style import Picture, Scene
from regkit.sweeps.report.table import Configuration, Table, seed_of
from regkit.sweeps.report.text import COLUMNS, NAMES, common, number, sentences, shown_columns
from regkit.sweeps.sweep_summary import CONCLUSION
from regkit.training.config import key_value, short
from regkit.training.runs import Run, read_run

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
STATES = {
    "failed": "",
    "unfinished": "no summary and no message: it was killed, or is still running",
    "pruned": "stopped early by the sweep",
}
# A continued run is made anew from its start; its name follows from the rest.
LEFT_OUT = {"ckpt_path"}
HYDRA, SEED = "config/hydra.yaml", "seed="
PLAIN = re.compile(r"[\w@%+=:,./-]+")


@dataclass(frozen=True)
class Conclusion:
    """What cross-validation, a path or bagging left beside its runs.

    pictures: name, content and kind of each; no content where there is no such picture.
    """

    title: str
    lines: list[str]
    pictures: list[tuple[str, bytes | None, str]]


def read_conclusions(folders: Sequence[Path]) -> list[Conclusion]:
    """Read the conclusions in folders; one that is broken says so in its place."""
    found = []
    for folder in folders:
        try:
            content = json.loads((folder / CONCLUSION).read_text(encoding="utf-8"))
            title, lines = str(content["title"]), list(map(str, content.get("lines", [])))
            pictures = [_picture(folder, str(name)) for name in content.get("pictures", [])]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{CONCLUSION} cannot be read: {type(error).__name__}: {error}"
            title, lines, pictures = folder.name, [reason], []
        found.append(Conclusion(title, lines, pictures))
    return found


def _picture(folder: Path, name: str) -> tuple[str, bytes | None, str]:
    path = folder / name
    kind = KINDS.get(path.suffix, "")
    return name, path.read_bytes() if kind and path.is_file() else None, kind


def page(
    scene: Scene, pictures: Sequence[tuple[Picture, bytes]], conclusions: Sequence[Conclusion]
) -> str:
    """Write the page; pictures come with their PNG files."""
    table = scene.table
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    return environment.get_template("page.html.jinja").render(
        title=f"{sum(len(row.runs) for row in table.rows)} runs, {len(table.rows)} configurations",
        table=table,
        conclusions=conclusions,
        choices=scene.choices,
        taken={choice.chosen for choice in scene.choices},
        measure=scene.measure,
        pictures=pictures,
        shown=shown_columns(table),
        **{"columns": COLUMNS, "names": NAMES, "states": STATES},
        **{"common": common, "sentences": sentences, "commands": commands},
        **{"number": number, "short": short},
    )


def rows_of_csv(table: Table, chosen: Sequence[Configuration]) -> list[list[Any]]:
    """Return the table in full precision, headings first."""
    columns = shown_columns(table)
    heads = [f"{key}{end}" for key in columns for end in ("", "_deviation")]
    found: list[list[Any]] = [
        ["penalty", "lam", *table.varying, "n", "seeds", *heads, "chosen", "command"]
    ]
    for row in table.rows:
        numbers = []
        for key in columns:
            spread = row.spread(key)
            numbers += [None, None] if spread is None else [spread.mean, spread.deviation]
        settings = [row.setting(key) for key in table.varying]
        seeds = " ".join(map(str, row.seeds))
        last = [row in chosen, "\n".join(commands(row))]
        found.append([row.penalty, row.lam, *settings, len(row.runs), seeds, *numbers, *last])
    return found


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
    parts = ["regkit train", *(["-cn", quote(config)] if config != "train" else [])]
    # The seed keeps its place: runs are named by the order of what was asked for.
    parts += [SEED + ",".join(seeds) if word == SEED else quote(word) for word in words]
    return " ".join(parts + ["-m"] * (SEED in words and len(seeds) > 1))


def _words(run: Run) -> list[str]:
    kept = [o for o in run.overrides if key_value(o)[0] not in LEFT_OUT]
    return [SEED if override.startswith(SEED) else override for override in kept]
