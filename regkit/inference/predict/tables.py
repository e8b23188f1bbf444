"""Write what was found as tables and JSON."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float64

from regkit.files import replacing, write_table, write_text
from regkit.inference.predict.result import Result
from regkit.inference.predict.windows import Window


class WindowTable:
    """The table of windows, written row by row, so that a stream's is there at every moment.

    A row is a window: start_s, end_s, its `top` classes with their probabilities, and in the
    columns p(class) those of all.
    """

    def __init__(self, file: TextIO, classes: Sequence[str], top: int):
        self._file, self._classes, self._top = file, classes, min(top, len(classes))
        self._table = csv.writer(file, lineterminator="\n")
        best = [f"{kind}_{k}" for k in range(1, self._top + 1) for kind in ("class", "probability")]
        # A class may have the name of a column.
        self._table.writerow(["start_s", "end_s", *best, *(f"p({name})" for name in classes)])

    def add(self, window: Window, probabilities: Float64[np.ndarray, " classes"]) -> None:
        """Write one window, at once."""
        order = np.argsort(-probabilities, kind="stable")[: self._top].tolist()
        best = [cell for k in order for cell in (self._classes[k], f"{probabilities[k]:.6g}")]
        times = (f"{window.start_s:.6f}", f"{window.end_s:.6f}")
        self._table.writerow([*times, *best, *(f"{p:.6g}" for p in probabilities)])
        self._file.flush()


def write_windows(result: Result, path: Path, top: int) -> None:
    """Write the table of windows."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = WindowTable(file, result.classes, top)
        for window, row in zip(result.windows, result.probabilities, strict=True):
            table.add(window, row)


def write_segments(result: Result, path: Path) -> None:
    """Write the table of segments: start_s, end_s, class, mean probability."""
    rows = [
        (f"{s.start_s:.6f}", f"{s.end_s:.6f}", result.name(s.label), f"{s.probability:.6g}")
        for s in result.segments
    ]
    write_table(path, [("start_s", "end_s", "class", "probability"), *rows])


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write plain values."""
    write_text(path, json.dumps(found, indent=1))
