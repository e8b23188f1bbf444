"""Make small data sets, look at what was read, and expect refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regkit.data.video import Video
from regkit.errors import InputError


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def names(part: list[Video], root: Path) -> set[str]:
    return {Path(video.path).relative_to(root).as_posix() for video in part}


def refused(match: str, read: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=match):
        read()
