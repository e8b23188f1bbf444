"""Train a video classifier: python train.py penalty=l1 lam=1e-4, as `regkit train` does."""

import sys

from regkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
