"""`python -m m3dt_agent.cli`, which torchrun starts."""

import sys

from .app import main

sys.exit(main())
