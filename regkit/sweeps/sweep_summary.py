"""conclusion.json: what several runs say together, for the report and for people."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regkit.files import write_text

CONCLUSION = "conclusion.json"


def conclude(
    folder: Path,
    *,
    title: str,
    lines: Sequence[str],
    pictures: Sequence[str],
    chosen: str | None,
    **numbers: Any,
) -> dict[str, Any]:
    """Leave a conclusion in a folder, print it, and return it."""
    found = {"title": title, "lines": lines, "pictures": pictures, "chosen": chosen, **numbers}
    write_text(folder / CONCLUSION, json.dumps(found, indent=2) + "\n")
    print("\n".join(["", title, *(f"  {line}" for line in lines)]), flush=True)
    return found


def add(folder: Path, lines: Sequence[str], **numbers: Any) -> None:
    """Add to the conclusion of a folder, and print what is added."""
    path = folder / CONCLUSION
    found = json.loads(path.read_text())
    found["lines"] = [*found["lines"], *lines]
    write_text(path, json.dumps(found | numbers, indent=2) + "\n")
    print("\n".join(f"  {line}" for line in lines), flush=True)
