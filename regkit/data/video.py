"""What a data set is: labelled videos, and which split each is in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Video:
    """Name one file, or the part of it from `start_s` to `end_s` (None: its end).

    Videos of one group (person, scene, film) belong on one side of a split.
    """

    path: str
    label: int
    group: str
    start_s: float = 0.0
    end_s: float | None = None

    def __str__(self) -> str:
        if self.start_s == 0 and self.end_s is None:
            return self.path
        end = "" if self.end_s is None else f"{self.end_s:g}"
        return f"{self.path} [{self.start_s:g}-{end} s]"


@dataclass(frozen=True)
class Splits:
    """The videos of each split; a label is a place in `classes`."""

    train: list[Video]
    val: list[Video]
    test: list[Video]
    classes: list[str]
