"""What the report says: numbers as people write them, the choice in sentences."""

import math
from collections.abc import Sequence

from regkit.sweeps.report.choose import MEASURES, Choice, num_validation
from regkit.sweeps.report.table import Configuration, Spread, Table, plug

# What the table shows of a summary: heading, and how a number is written.
COLUMNS = {
    "test_accuracy": ("test accuracy", ".3f"),
    "val_accuracy": ("validation accuracy", ".3f"),
    "debiased_accuracy": ("debiased test accuracy", ".3f"),
    "debiased_val_accuracy": ("debiased validation accuracy", ".3f"),
    "val_loss": ("validation loss", ".3f"),
    "density": ("density", ".3f"),
    "flips": ("flips a step", ".2%"),
    "settled": ("zeros settled", ".0%"),
    "live_groups": ("live groups", ".1f"),
    "roughness": ("roughness", ".3f"),
    "remaining_flops": ("remaining FLOPs", "large"),
    "remaining_parameters": ("remaining parameters", "large"),
    "shrunk_accuracy": ("shrunk test accuracy", ".3f"),
    "whole_latency_ms": ("latency, ms", ".2f"),
    "shrunk_latency_ms": ("shrunk latency, ms", ".2f"),
    "objective": ("objective", ".3f"),
    "train_s": ("training, s", ".1f"),
}
# Columns that are left out where no run has them.
RARE = {
    *("flips", "settled"),
    *("debiased_accuracy", "debiased_val_accuracy", "val_loss"),
    *("shrunk_accuracy", "whole_latency_ms", "shrunk_latency_ms"),
}
MOST_ROWS = 24  # in a terminal
NAMES = {key: heading for key, (heading, _) in COLUMNS.items()}
NAMES["debiased_val_loss"] = "debiased validation loss"


def shown_columns(table: Table) -> list[str]:
    """List the columns that the table has."""
    return [
        key
        for key in COLUMNS
        if key not in RARE or any(row.spread(key) is not None for row in table.rows)
    ]


def number(found: float, form: str) -> str:
    """Write a number: 0.873, or 38.9 M where it is large."""
    if not math.isfinite(found):
        return str(found)
    if form != "large":
        return f"{found:{form}}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if found >= size:
            return f"{found / size:.3g} {letter}"
    return f"{found:.3g}"


def spread(found: Spread | None, form: str = ".3f") -> str:
    """Write mean and standard deviation; - where there is nothing."""
    if found is None:
        return "-"
    mean = number(found.mean, form)
    return mean if found.deviation is None else f"{mean} ± {number(found.deviation, form)}"


def common(table: Table) -> str:
    """Say what all rows have in common."""
    parts = []
    for part in ("model", "data", "optimizer", "scheduler"):
        names = {_plug(row, part) for row in table.rows}
        if len(names) == 1 and (name := names.pop()) is not None:
            parts.append(f"{part} {name}")
    asked: dict[str, set[str]] = {}
    for row in table.rows:
        for key in row.settings:
            asked.setdefault(key, set()).add(row.setting(key))
    epochs = {row.mean("epochs") for row in table.rows}
    if len(epochs) == 1 and (num := epochs.pop()) is not None:
        parts.append(f"{num:g} epochs")
    same = {key: found for key, found in asked.items() if key not in table.varying}
    named = {"model", "data", "optimizer", "scheduler", "trainer.max_epochs"}
    parts += [f"{key}={found.pop()}" for key, found in same.items() if key not in named]
    return ", ".join(parts)


def sentences(table: Table, choice: Choice) -> list[str]:
    """Say what was chosen and why, with the numbers."""
    best, chosen = choice.best, choice.chosen
    said = [f"Best mean {NAMES[choice.measure]}: {table.name(best)}, {_of(best, choice.measure)}."]
    if choice.error is None:
        said.append(
            "With one seed, and no known number of validation videos, no spread is known: the best "
            "is taken. Several seeds (seed=0,1,2) would say what else is as good."
        )
    else:
        said += [_error_words(choice), _within(table, choice)]
    if (density := chosen.spread("density")) is not None:
        than = best.spread("density")
        against = f", that of the best {spread(than)}" if chosen is not best else ""
        said.append(f"Its density is {spread(density)}{against}.")
    if (settled := chosen.mean("settled")) is not None and settled < 1:
        said.append(
            f"Its zeros are not settled ({spread(chosen.spread('flips'), '.2%')} of the weights "
            "flip in a step): how many there are is a draw."
        )
    if (is_noise := chosen.mean("zeros_cost_is_noise")) is not None and is_noise < 1:
        said.append(
            f"Its zeros have cost {spread(chosen.spread('zeros_cost'))} of validation accuracy in "
            "its own training, which is more than noise: a denser one may serve better."
        )
    if (test := chosen.spread("test_accuracy")) is not None:
        said.append(f"In the test, which had no part in the choice, it reached {spread(test)}.")
    return said


def _error_words(choice: Choice) -> str:
    num = len(choice.best.runs)
    if choice.source != "videos":
        rough = f"; of two {choice.source} it is rough itself" if num == 2 else ""
        over = f"over {num} {choice.source}"
        return f"The standard error of that mean, {over}, is {choice.error:.3f}{rough}."
    return (
        f"There is one seed, so the standard error is that of a share of "
        f"{num_validation(choice.best)} validation videos: {choice.error:.3f}. It knows nothing of "
        "what another seed would change."
    )


def _within(table: Table, choice: Choice) -> str:
    bound = f"{choice.bound:.3f} or {'more' if MEASURES[choice.measure] else 'less'}"
    if choice.num_within == 1:
        return f"No other configuration lies within one standard error of it ({bound})."
    within = f"Of {choice.num_within} configurations within one standard error of it ({bound})"
    if choice.chosen is choice.best:
        return f"{within} it is the sparsest."
    found = _of(choice.chosen, choice.measure)
    return f"{within} the sparsest is taken: {table.name(choice.chosen)}, {found}."


def _of(row: Configuration, key: str) -> str:
    found = row.spread(key)
    num = f" (n = {found.num})" if found is not None and found.num > 1 else ""
    return spread(found) + num


def _plug(row: Configuration, part: str) -> str | None:
    node = row.runs[0].recipe.get(part)
    return plug(node) if isinstance(node, dict) else None


def plain_table(table: Table, choices: Sequence[Choice]) -> list[str]:
    """Write the table in lines for a terminal, columns aligned, the chosen rows marked."""
    keys = [key for key in ("test_accuracy", "val_accuracy", "density", "live_groups", "roughness")]
    chosen = {choice.chosen for choice in choices}
    grid = [["", "configuration", "n", *(NAMES[key] for key in keys)]]
    for row in table.rows[:MOST_ROWS]:
        numbers = [spread(row.spread(key), COLUMNS[key][1]) for key in keys]
        grid.append(["*" * (row in chosen), table.name(row), str(len(row.runs)), *numbers])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in grid]
    left_out = len(table.rows) - MOST_ROWS
    return [*lines, f"... and {left_out} more, see table.csv"] if left_out > 0 else lines
