"""The page: one file that holds everything, pictures too, and asks nothing of the net."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from regkit.sweeps.report.reproduce import commands
from regkit.sweeps.report.style import Picture, Scene
from regkit.sweeps.report.stylesheet import STYLE
from regkit.sweeps.report.table import Configuration, Spread, Table
from regkit.sweeps.report.text import COLUMNS, NAMES, common, number, sentences, shown_columns
from regkit.training.config import short
from regkit.training.runs import Run

CONCLUSION = "conclusion.json"
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
STATES = {
    "failed": "",
    "unfinished": "no summary and no message: it was killed, or is still running",
    "pruned": "stopped early by the sweep",
}


@dataclass(frozen=True)
class Conclusion:
    """What cross-validation, a path or bagging left beside its runs."""

    folder: Path
    title: str
    lines: list[str]
    pictures: list[str]


def read_conclusions(folders: Sequence[Path]) -> list[Conclusion]:
    """Read the conclusions in folders; one that is broken says so in its place."""
    found = []
    for folder in folders:
        try:
            content = json.loads((folder / CONCLUSION).read_text(encoding="utf-8"))
            title, lines = str(content["title"]), list(map(str, content.get("lines", [])))
            pictures = list(map(str, content.get("pictures", [])))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{CONCLUSION} cannot be read: {type(error).__name__}: {error}"
            title, lines, pictures = folder.name, [reason], []
        found.append(Conclusion(folder, title, lines, pictures))
    return found


def page(
    scene: Scene, pictures: Sequence[tuple[Picture, bytes]], conclusions: Sequence[Conclusion]
) -> str:
    """Write the page; pictures come with their PNG files."""
    table = scene.table
    num = sum(len(row.runs) for row in table.rows)
    title = f"{num} runs, {len(table.rows)} configurations"
    parts = [f"<h1>{title}</h1>", f'<p class="lead">All of them: {escape(common(table))}.</p>']
    parts += [_conclusion(conclusion) for conclusion in conclusions]
    parts += [_chosen(scene)]
    parts += [_figure(picture, png) for picture, png in pictures]
    parts += [_table(scene), _apart(table), _reproduce(table)]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{STYLE}</style></head>\n<body><main>\n" + "\n".join(filter(None, parts)) + "\n"
        "</main></body></html>\n"
    )


def _conclusion(conclusion: Conclusion) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in conclusion.lines)
    shown = "".join(_picture_of(conclusion.folder, name) for name in conclusion.pictures)
    return f'<section class="chosen"><h2>{escape(conclusion.title)}</h2>{lines}{shown}</section>'


def _picture_of(folder: Path, name: str) -> str:
    path = folder / name
    if path.suffix not in KINDS or not path.is_file():
        return f"<p>There is no picture {escape(name)}.</p>"
    return f"<figure>{_image(path.read_bytes(), name, KINDS[path.suffix])}</figure>"


def _image(content: bytes, text: str, kind: str = "image/png") -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:{kind};base64,{data}">'


def _chosen(scene: Scene) -> str:
    if not scene.choices:
        why = (
            f"No finished run has a {NAMES[scene.measure]}, so nothing is chosen: a test that "
            "chooses would no longer be one."
        )
        return f'<section class="chosen"><h2>Chosen: none</h2><p>{why}</p></section>'
    parts = []
    groups = [name for name, rows in scene.table.by_data.items() if name]
    if len(groups) > 1:
        parts.append(
            f"<p>The runs learned from {len(groups)} kinds of data, whose accuracies cannot be "
            "held against each other; each has its own choice.</p>"
        )
    for choice in scene.choices:
        said = " ".join(sentences(scene.table, choice))
        command = "".join(f"<pre>{escape(line)}</pre>" for line in commands(choice.chosen))
        name = escape(scene.table.name(choice.chosen))
        parts.append(f"<h2>Chosen: {name}</h2><p>{escape(said)}</p>{command}")
    return f'<section class="chosen">{"".join(parts)}</section>'


def _figure(picture: Picture, png: bytes) -> str:
    return (
        f"<section><h2>{escape(picture.title)}</h2><figure>{_image(png, picture.title)}"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure></section>"
    )


def _table(scene: Scene) -> str:
    table, columns = scene.table, shown_columns(scene.table)
    headings = ["", "penalty", "lam", *table.varying, "n", *(COLUMNS[key][0] for key in columns)]
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    head = head.replace("<th>penalty", '<th class="name">penalty')
    chosen = {choice.chosen for choice in scene.choices}
    body = "".join(
        _row(table, row, at, columns, row in chosen) for at, row in enumerate(table.rows, start=1)
    )
    repeated = ""
    if table.repeated:
        repeated = f"<p>{len(table.repeated)} runs repeat a configuration with the same seed "
        repeated += "and fold; of those the one that finished last counts.</p>"
    return (
        '<section class="wide"><h2>All configurations</h2>'
        f"<p>Mean over n {table.repeats}, then the standard deviation. "
        "The number of a row leads to its command.</p>"
        f'{repeated}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _row(table: Table, row: Configuration, at: int, columns: Sequence[str], chosen: bool) -> str:
    cells = f'<td><a href="#command-{at}">{at}</a></td>'
    cells += f'<td class="name">{escape(row.penalty)}</td><td>{short(row.lam)}</td>'
    settings = [row.setting(key) for key in table.varying]
    cells += "".join(f'<td class="word">{escape(setting)}</td>' for setting in settings)
    cells += f"<td>{len(row.runs)}</td>"
    cells += "".join(f"<td>{_cell(row.spread(key), COLUMNS[key][1])}</td>" for key in columns)
    return f"<tr{' class=taken' * chosen}>{cells}</tr>"


def _cell(found: Spread | None, form: str) -> str:
    if found is None:
        return "-"
    mean = escape(number(found.mean, form))
    if found.deviation is None:
        return mean
    return f"{mean}<small> ± {escape(number(found.deviation, form))}</small>"


def _apart(table: Table) -> str:
    if not table.apart:
        return ""
    items = "".join(
        f"<tr><td>{run.status}</td><td class=word>{escape(_name(run))}</td>"
        f'<td class="word">{escape(run.message or STATES[run.status])}</td></tr>'
        for run in table.apart
    )
    return (
        f"<section><h2>Not counted: {len(table.apart)} runs</h2><table><thead><tr><th></th>"
        f'<th class="name">run</th><th class="name">why</th></tr></thead><tbody>{items}</tbody>'
        "</table></section>"
    )


def _name(run: Run) -> str:
    return f"{run.folder.parent.name}/{run.folder.name}"


def _reproduce(table: Table) -> str:
    items = ""
    for at, row in enumerate(table.rows, start=1):
        lines = commands(row) or ["- (the run kept no overrides)"]
        shown = "".join(f"<pre>{escape(line)}</pre>" for line in lines)
        items += f'<li id="command-{at}">{escape(table.name(row))}{shown}</li>'
    return f"<section><h2>To reproduce</h2><ol>{items}</ol></section>"


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
