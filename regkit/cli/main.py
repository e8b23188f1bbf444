"""The program `regkit`: a verb, its options, and errors of one line."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from regkit import __version__
from regkit.errors import InputError

# These take Hydra's words as they stand: `train`, and `train -m`.
RUNS = {
    "train": "train a video classifier: penalty=l1 lam=1e-4, as python train.py does",
    "sweep": "train with every combination of the values given: penalty=l1,l2 seed=0,1,2",
}
# Each has a module of its name (- is _ there), with add_options(parser) and run(arguments), which
# may return a code.
VERBS = {
    "bench": "measure what each penalty adds to a training step, on this machine",
    "explain": "say which time spans, colours, places and weights carried a decision",
    "export": "write a trained network as ONNX and torch.export program, compared with PyTorch",
    "gpu-check": "say within minutes whether a GPU does all of this right, and how fast",
    "hog": "fit sparse logistic regression on hand-made features (HOG), and watch a stream with it",
    "lam": "say from which strength on a penalty wins, and which strengths to try",
    "predict": "say what happens when in a film, a folder of films, or a camera's stream",
    "prepare": "check every video of a data set before training, fill its cache",
    "report": (
        "compare runs on one page: table, pictures, the choice and why, how to reproduce each"
    ),
    "shrink": "cut out of a trained net what its zeros make superfluous; outputs stay equal",
    "throughput": "measure how many clips a second one process reads from videos",
}
# These make no plug, and so take no folder of the user's own.
PLUGLESS = {"bench", "gpu-check", "report", "throughput"}


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
        if args.verb not in PLUGLESS:
            import_module("regkit.training.allowed").trust(*args.trust)
            import_module("regkit.training.overrides").use_own(args.config_dir)
        return _module(args.verb).run(args) or 0
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
    for name, text in VERBS.items():
        own = verbs.add_parser(name, help=text, description=f"{text}.")
        if name == next(iter(words), None):
            _module(name).add_options(own)
            if name not in PLUGLESS:
                own.add_argument(
                    "--config-dir", metavar="DIR", help="of your own plugs, as for regkit train"
                )
                own.add_argument(
                    "--trust",
                    metavar="NAME",
                    action="append",
                    default=[],
                    help="a class, package or address that a checkpoint may name",
                )
    return parser


def _module(verb: str) -> Any:
    return import_module(f"regkit.cli.{verb.replace('-', '_')}")
