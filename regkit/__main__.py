"""python -m regkit: what `regkit` does."""

import sys

from regkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
