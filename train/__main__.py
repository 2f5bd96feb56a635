"""`python -m packvit.train RECIPE ...`: what torchrun starts."""

import sys

from packvit.cli.commands import dispatch

if __name__ == "__main__":
    sys.exit(dispatch(["train", *sys.argv[1:]]))
