"""Files that nobody ever sees half of."""

import csv
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regkit.errors import InputError

DRAFTS = ".*.tmp*"  # names of what a killed process may leave beside the files it wrote


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside `path`, and move what is written there to `path` at the end.

    A file is on the disk before it is moved; a folder is moved as it is. What was at `path` stays
    when an error ends this, and nothing is left beside it.
    """
    draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield draft
        if draft.is_file():
            with draft.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        draft.unlink(missing_ok=True)


def sweep_drafts(folder: Path, older_s: float = 0.0) -> None:
    """Remove the drafts of a folder whose writer was killed.

    older_s: how long ago they were written to at least; 0 where nobody else writes there now.
    """
    for draft in folder.glob(DRAFTS):
        if time.time() - draft.stat().st_mtime >= older_s:
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)


def make_folder(folder: Path, told: str) -> Path:
    """Make a folder to write to, and return it.

    told: what an error begins with: who got it, and as what.
    Raises: InputError when it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{told}, which cannot be made: {error}.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{told}; give a folder to write to.")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8; names of files that are none stay as they are."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON whole or not at all; numbers that are not finite, which it has not, as null."""
    write_text(path, json.dumps(finite(content), indent=indent, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """Return what JSON is made of, with None for each number that is not finite."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV whole or not at all, as `write_text` does; its cells are text (`cell`)."""
    how: Any = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with replacing(path) as draft, draft.open("w", **how) as file:
        csv.writer(file, lineterminator="\n").writerows(map(cell, row) for row in rows)


_BEGINS_FORMULA = re.compile("'*[=+@\t\r-]")


def cell(value: Any) -> Any:
    """Mark text by a leading ' that programs for tables would take for a formula; `uncell` undoes.

    A class of videos may be called =HYPERLINK(...), and whoever opens the table would run it.
    """
    text = isinstance(value, str) and _BEGINS_FORMULA.match(value) and not _is_number(value)
    return f"'{value}" if text else value


def uncell(text: str) -> str:
    """Read what `cell` has written."""
    return text[1:] if text.startswith("'") and _BEGINS_FORMULA.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
