"""Measure what watching costs: the table of docs/cost.md. Run by hand; pytest does not collect it.

    python tests/benchmarks/overhead.py --rounds 21

Takes the options of `gradscope bench`, which it is.
"""

import sys

from gradscope.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
