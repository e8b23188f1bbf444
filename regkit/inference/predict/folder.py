"""All files of a folder, one after the other; a bad one does not stop the others."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from regkit.data.timeline import VideoError
from regkit.errors import InputError
from regkit.files import write_table
from regkit.inference.predict.film import Film

SUMMARY = "summary.csv"
_COLUMNS = ["file", "seconds", "windows", "class", "probability", "problem"]


@dataclass(frozen=True, eq=False)
class Entry:
    """What became of one file: what was found, or why nothing was.

    name: its path below the folder.
    problem: why it could not be read, or not to its end.
    """

    name: str
    film: Film | None
    problem: str

    def row(self) -> list[str]:
        """Return its row of the summary."""
        if self.film is None:
            return [self.name, "", "", "", "", self.problem]
        result = self.film.result
        label, probability = result.overall
        times = (f"{result.end_s:.6g}", str(len(result.windows)))
        return [self.name, *times, result.classes[label], f"{probability:.6g}", self.problem]


def files_in(folder: Path, out: Path) -> list[Path]:
    """List all files below a folder but hidden ones, and those that were written to `out`.

    Raises: InputError when there are none.
    """
    out = out.resolve()
    inside = out.is_relative_to(folder.resolve()) and out != folder.resolve()
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (inside and path.resolve().is_relative_to(out))
    ]
    if not found:
        raise InputError(f"predict got video={folder}, a folder without files.")
    return found


def each(
    files: Sequence[Path], folder: Path, out: Path, predict: Callable[[Path, Path], Film]
) -> list[Entry]:
    """Let `predict(file, where to write)` work on each file, and write the summary as it grows."""
    entries: list[Entry] = []
    for path in files:
        name = os.path.relpath(path, folder)
        try:
            film = predict(path, out / name)
            problem = "" if film.broken is None else film.broken.reason
            entries.append(Entry(name, film, problem))
        except VideoError as error:
            entries.append(Entry(name, None, error.reason))
        write_table(out / SUMMARY, [_COLUMNS, *(entry.row() for entry in entries)])
    return entries
