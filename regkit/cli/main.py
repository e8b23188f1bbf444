"""The program `regkit`: a verb, its options, and errors of one line."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from regkit import __version__
from regkit.errors import InputError


@dataclass(frozen=True)
class Verb:
    """A verb is a module with add_options(parser) and run(arguments), which may return a code.

    makes_plugs: it takes --config-dir, the folder of the user's own plugs (`words.use_own`).
    """

    module: str
    help: str
    makes_plugs: bool = True

    def load(self) -> Any:
        """Import the module."""
        return import_module(self.module)


# These take Hydra's words as they stand: `train`, and `train -m`.
RUNS = {
    "train": "train a video classifier: penalty=l1 lam=1e-4, as python train.py does",
    "sweep": "train with every combination of the values given: penalty=l1,l2 seed=0,1,2",
}
VERBS = {
    "bench": Verb(
        "regkit.cli.bench",
        "measure what each penalty adds to a training step, on this machine",
        makes_plugs=False,
    ),
    "explain": Verb(
        "regkit.cli.explain",
        "say which time spans, colours, places and weights carried a decision",
    ),
    "export": Verb(
        "regkit.cli.export",
        "write a trained network as ONNX and torch.export program, compared with PyTorch",
    ),
    "hog": Verb(
        "regkit.cli.hog",
        "fit sparse logistic regression on hand-made features (HOG), and watch a stream with it",
    ),
    "lam": Verb(
        "regkit.cli.lam",
        "say from which strength on a penalty wins, and which strengths to try",
    ),
    "predict": Verb(
        "regkit.cli.predict",
        "say what happens when in a film, a folder of films, or a camera's stream",
    ),
    "prepare": Verb(
        "regkit.cli.prepare", "check every video of a data set before training, fill its cache"
    ),
    "report": Verb(
        "regkit.cli.report",
        "compare runs on one page: table, pictures, the choice and why, how to reproduce each",
        makes_plugs=False,
    ),
    "shrink": Verb(
        "regkit.cli.shrink",
        "cut out of a trained net what its zeros make superfluous; outputs stay equal",
    ),
    "throughput": Verb(
        "regkit.cli.throughput",
        "measure how many clips a second one process reads from videos",
        makes_plugs=False,
    ),
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
    # Threads that wait should sleep: spinning, they take the core from the one they wait for as
    # soon as anything else runs (measured on 2 cores with one busy neighbour: 234 ms a training
    # step, 44 ms without). torch reads it when it is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in RUNS:
            from regkit.cli.train import train

            return train(["-m"] * (words[0] == "sweep") + words[1:])
        args = _parser(words).parse_args(words)
        if getattr(args, "config_dir", None) is not None:
            import_module("regkit.training.overrides").use_own(args.config_dir)
        return VERBS[args.verb].load().run(args) or 0
    except InputError as error:
        print(error.line(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nregkit: interrupted.", file=sys.stderr)
        return 130


def _parser(words: Sequence[str]) -> Parser:
    """Return a parser that knows all verbs, and the options of the one that is asked for."""
    parser = Parser(prog="regkit", description="regkit on the command line.")
    parser.add_argument("--version", action="version", version=f"regkit {__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="verb", required=True)
    for name, text in RUNS.items():
        verbs.add_parser(name, help=text)
    for name, verb in VERBS.items():
        own = verbs.add_parser(name, help=verb.help, description=f"{verb.help}.")
        if name == next(iter(words), None):
            verb.load().add_options(own)
            if verb.makes_plugs:
                own.add_argument(
                    "--config-dir", metavar="DIR", help="of your own plugs, as for regkit train"
                )
    return parser
