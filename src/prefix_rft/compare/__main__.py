"""One run of a comparison: ``python -m prefix_rft.compare JOB.json``."""

import sys

from prefix_rft.compare.work import main
from prefix_rft.support.untrusted import show_what_it_can

for stream in (sys.stdout, sys.stderr):
    show_what_it_can(stream)

sys.exit(main(sys.argv[1]))
