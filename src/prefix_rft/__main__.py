"""``python -m prefix_rft``: the command, where its script is not on the path."""

import sys

from prefix_rft.cli import main

if __name__ == "__main__":
    sys.exit(main())
