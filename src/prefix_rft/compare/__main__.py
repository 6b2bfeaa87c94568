"""One run of a comparison: ``python -m prefix_rft.compare JOB.json``."""

import sys

from prefix_rft.compare.work import main

sys.exit(main(sys.argv[1]))
