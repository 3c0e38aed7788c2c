"""`m3dt`, the command line. app.py is its table of commands; each command has a file of its own."""

from .app import app, main

__all__ = ["app", "main"]
