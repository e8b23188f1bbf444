"""The command line: python -m regkit <verb>."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from regkit.bench import command as bench
from regkit.errors import InputError

# A verb is a module with HELP, add_options(parser) and run(arguments).
VERBS = {"bench": bench}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours: one line."""

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
        VERBS[args.verb].run(args)
    except InputError as error:
        line = " ".join(str(error).split())
        print(f"regkit: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nregkit: interrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
