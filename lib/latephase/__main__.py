"""`python -m latephase` is the command line."""

import sys

from latephase.cli import main

sys.exit(main())
