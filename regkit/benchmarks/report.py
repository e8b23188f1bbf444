"""What a run found, as a file: written, and read again; and the machine it is of."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from regkit.errors import InputError
from regkit.timing import cpu_name, package_version

Report = TypeVar("Report")


def write(report: Any, path: Path) -> None:
    """Write all figures of a report, a dataclass, as JSON."""
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")


def read(kind: type[Report], path: Path) -> Report:
    """Return the report of this kind that `write` wrote.

    Raises: InputError when the file is none of these.
    """
    try:
        return _made(kind, json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--read got {path}, which is no file that --out wrote ({type(error).__name__}: "
            f"{error}); give one."
        ) from error


def machine(packages: Iterable[str], **more: Any) -> dict[str, Any]:
    """Describe the machine at hand: its processor, the versions of packages, the date."""
    return {
        "cpu": cpu_name(),
        **more,
        **{name: package_version(name) for name in packages},
        "system": platform.platform(),
        "date": date.today().isoformat(),
    }


def _made(kind: Any, found: Any) -> Any:
    """Make of plain values the dataclasses that a type hint names."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{key: _made(hints[key], value) for key, value in found.items()})
    parts = get_args(kind)
    if get_origin(kind) is list:
        return [_made(parts[0], value) for value in found]
    if get_origin(kind) is dict:
        return {key: _made(parts[1], value) for key, value in found.items()}
    return found
