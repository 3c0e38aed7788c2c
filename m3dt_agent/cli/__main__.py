"""`python -m m3dt_agent.cli`, which torchrun starts."""

import sys

from .app import main

if __name__ == "__main__":
    sys.exit(main())
