"""`m3dt train`.

command.py    the command            request.py    what is trained, on what, and where
settings.py   its settings           run_file.py   runs in TOML files
"""

from .command import train_command

__all__ = ["train_command"]
