"""`python -m packvit.train RECIPE ...`: what torchrun starts."""

import sys

from packvit.cli.commands import dispatch
from packvit.common.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()
    sys.exit(dispatch(["train", *sys.argv[1:]]))
