"""``python -m prefix_rft.cli``: the command."""

import sys

from prefix_rft.cli import main

sys.exit(main())
