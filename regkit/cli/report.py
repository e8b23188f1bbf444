"""The verb `report`: folders of runs in, a page out."""

import argparse
from pathlib import Path

from regkit.sweeps.report.choose import MEASURES
from regkit.sweeps.report.text import common, plain_table, sentences
from regkit.sweeps.report.write import report

HELP = "compare runs on one page: table, pictures, the choice and why, how to reproduce each"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="of a run, of a sweep, or of sweeps: runs/*"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the page goes (default: FOLDER/report)"
    )
    parser.add_argument(
        "--by",
        default="val_accuracy",
        metavar="NUMBER",
        help=f"what chooses: {', '.join(MEASURES)} (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the report, and print its gist.

    Raises: InputError when there are no runs, or `--by` may not choose.
    """
    found = report(args.folders, args.out, args.by)
    table, choices = found.scene.table, found.scene.choices
    for choice in choices:
        print(f"chosen: {table.name(choice.chosen)}")
        for sentence in sentences(table, choice):
            print(f"  {sentence}")
    if not choices:
        print(f"chosen: none, for no finished run has a {args.by}")
    if table.rows:
        print(f"\n{common(table)}\n")
        for line in plain_table(table, choices):
            print(line)
    if table.apart:
        print(f"\n{len(table.apart)} runs failed, are unfinished or were pruned: see the page.")
    print(f"\npage: {found.page}\ncurves: tensorboard --logdir '{args.folders[0]}'")
