"""Code of the user's own that the command line names: modules, and functions in them."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from ...errors import ConfigError


def own_module(name: str, option: str) -> Any:
    """The module `name`; those of the folder one is in are found too. option: which names it, for errors.

    Raises:
        ConfigError: there is no such module, or it cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; workers inherit it
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the code of that module raises
        raise ConfigError(f"{option} {name}: the module cannot be imported: {error!r}") from error


def own_function(name: str, option: str) -> Any:
    """The function that `MODULE:FUNCTION` names, as `own_module` finds it.

    Raises:
        ConfigError: there is no such module or function, or the module cannot be imported.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise ConfigError(f"{option} takes MODULE:FUNCTION, such as my_policies:make; got {name!r}")
    found = getattr(own_module(module, option), function, None)
    if not callable(found):
        raise ConfigError(f"{option} takes MODULE:FUNCTION, such as my_policies:make; {module} has no function {function!r}")
    return found
