"""The command line: python -m regkit <verb>."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from regkit.cli import (
    bench,
    explain,
    export,
    hog,
    lam,
    predict,
    prepare,
    report,
    shrink,
    throughput,
)
from regkit.errors import InputError

# A verb is a module with HELP, add_options(parser) and run(arguments), which may return a code.
VERBS = {
    "bench": bench,
    "explain": explain,
    "export": export,
    "hog": hog,
    "lam": lam,
    "predict": predict,
    "prepare": prepare,
    "report": report,
    "shrink": shrink,
    "throughput": throughput,
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours, of one line, and whose words may stand among options."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Take key=value behind an option too; argparse stops at the first row of words."""
        found, rest = super().parse_known_args(args, namespace)
        if isinstance(getattr(found, "overrides", None), list):
            words = [word for word in rest if "=" in word and not word.startswith("-")]
            found.overrides += words
            rest = [word for word in rest if word not in words]
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(f"{message}. {self.prog} --help says what there is.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    parser = Parser(prog="python -m regkit", description="regkit on the command line.")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="verb", required=True)
    for name, verb in VERBS.items():
        verb.add_options(verbs.add_parser(name, help=verb.HELP, description=f"{verb.HELP}."))
    try:
        args = parser.parse_args(arguments)
        return VERBS[args.verb].run(args) or 0
    except InputError as error:
        line = " ".join(str(error).split())
        print(f"regkit: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nregkit: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
