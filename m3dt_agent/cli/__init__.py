"""`m3dt`, the command line. app.py is its table of commands, and program.py runs one.

Every command, or group of commands, has its own file.
"""

from .app import app
from .program import main, program

__all__ = ["app", "main", "program"]
