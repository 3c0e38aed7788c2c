"""`python -m m3dt_agent.cli`, which torchrun starts."""

import sys

from .program import program

if __name__ == "__main__":
    sys.exit(program())
