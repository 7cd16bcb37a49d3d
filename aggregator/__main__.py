"""`python -m aggregator` is `histofed-aggregator`."""

import sys

from aggregator.cli import main

sys.exit(main())
