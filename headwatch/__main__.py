"""`python -m headwatch`: the command line, for environments where the `headwatch` command is not on the path."""

import sys

from headwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
