"""`python -m gradscope`: the command line where the command `gradscope` is not on the path."""

from __future__ import annotations

import sys

from gradscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
