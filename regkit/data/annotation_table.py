"""Read lists of videos: tables with a header, or lines of a path and a number."""

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from regkit.errors import InputError

_DELIMITERS = (",", "\t", ";", " ")


@dataclass(frozen=True)
class Row:
    """One video as it is written."""

    file: str
    line: int
    path: str
    label: str
    start_s: float = 0.0
    end_s: float | None = None
    group: str | None = None
    split: str | None = None

    @property
    def place(self) -> str:
        """Say where it is written."""
        return f"line {self.line} of {self.file}"


def read_rows(
    file: str,
    text: str,
    delimiter: str | None,
    columns: Mapping[str, str],
    required: Collection[str],
) -> list[Row]:
    """Read a table, whose first line names `path` and `label`; else a list of `path number`.

    columns: what the columns are called, by field of a `Row`.
    required: of these fields, which must have their column.
    Raises: InputError when the text is neither, or a line has another form than the first.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    choice = _DELIMITERS if delimiter is None else (delimiter,)
    heads = {one: _fields(first, one) for one in choice}
    for one, head in heads.items():
        if {columns["path"], columns["label"]} <= set(head):
            return _table(file, text, one, columns, required)
    listed = re.fullmatch(r".*[^\s,;](?:\s*([\t,;])\s*| +)\d+", first.strip())
    if listed is not None and delimiter in (None, listed[1] or " "):
        return _list(file, text, listed[1] or " ")
    head = max(heads.values(), key=len)
    raise InputError(
        f"Csv got {file}, whose first line {first!r} is neither a header with "
        f"{columns['path']!r} and {columns['label']!r} (it has {head}), nor a path and a number. "
        "Add a header, or say by path_column and label_column how the columns are called."
    )


def _fields(line: str, delimiter: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]


def _table(
    file: str,
    text: str,
    delimiter: str,
    columns: Mapping[str, str],
    required: Collection[str],
) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except csv.Error as error:
        raise InputError(f"Csv cannot read {file}, line {reader.line_num}: {error}.") from error
    (_, head), *lines = [(number, fields) for number, fields in lines if any(fields)]
    twice = [name for name in columns.values() if head.count(name) > 1]
    absent = [columns[field] for field in required if columns[field] not in head]
    if twice or absent:
        raise InputError(
            f"Csv got {file} with the columns {head}; it needs each of "
            f"{twice or absent} once. Name others by path_column, label_column and so on."
        )
    rows, wrong = [], []
    for number, fields in lines:
        cells = dict(zip(head, fields, strict=False))
        given = {field: cells[name] for field, name in columns.items() if name in cells}
        fault = f"it has {len(fields)} fields, the header {len(head)}"
        if len(fields) == len(head):
            fault = _fault(given)
        if fault:
            wrong.append(f"line {number} is {delimiter.join(fields)!r}: {fault}")
        else:
            rows.append(_row(file, number, given))
    _refuse(file, wrong, len(lines))
    return rows


def _fault(given: Mapping[str, str]) -> str:
    """Say what is wrong with the cells of a row, or nothing."""
    empty = [field for field in ("path", "label", "group", "split") if given.get(field) == ""]
    if empty:
        return f"its {empty[0]} is empty"
    times = [given.get(field) or edge for field, edge in (("start", "0"), ("end", "inf"))]
    try:
        start_s, end_s = map(float, times)
    except ValueError:
        return "start and end are in seconds, as 12.5"
    return "" if 0 <= start_s < end_s else "it must start at 0 or later, and end later than that"


def _row(file: str, line: int, given: Mapping[str, str]) -> Row:
    return Row(
        file,
        line,
        given["path"],
        given["label"],
        float(given.get("start") or 0),
        float(given["end"]) if given.get("end") else None,
        given.get("group"),
        given.get("split"),
    )


def _list(file: str, text: str, delimiter: str) -> list[Row]:
    """Split each line at the last delimiter; paths may hold more of them."""
    line_form = re.compile(rf"(.*\S)\s*{delimiter}\s*(\d+)")
    rows, wrong = [], []
    for number, line in enumerate(text.splitlines(), 1):
        match = line_form.fullmatch(line.strip())
        if match is not None:
            rows.append(Row(file, number, match[1], str(int(match[2]))))
        elif line.strip():
            form = f"as in the first, a path, {delimiter!r} and a number"
            wrong.append(f"line {number} is {line!r}: write, {form}")
    _refuse(file, wrong, len(rows) + len(wrong))
    return rows


def _refuse(file: str, wrong: Sequence[str], count: int) -> None:
    if wrong:
        raise InputError(
            f"Csv does not understand {len(wrong)} of {count} videos in {file}; {wrong[0]}."
        )
    if not count:
        raise InputError(f"Csv got {file}, which lists no videos below its header.")
