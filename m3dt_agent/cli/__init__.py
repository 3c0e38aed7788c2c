"""`m3dt`, the command line. app.py is its table of commands; every command, or group of commands, has its own file."""

from .app import app, main

__all__ = ["app", "main"]
