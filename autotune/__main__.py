"""``python -m autotune``: the command line where its script is not on the path."""

import sys

from autotune.cli import main

sys.exit(main(sys.argv[1:]))
