"""The table of published data formats that `import_datasets` knows. Each module draws the files that it expects.

Every finder looks at a path for the tasks that are wanted (None: all) and returns a `Listing` of what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from m3dt_agent.hub.published.episodes import Listing, Wanted
from m3dt_agent.hub.published.lerobot import find_lerobot
from m3dt_agent.hub.published.minari import find_minari
from m3dt_agent.hub.published.mt160 import find_mt160
from m3dt_agent.hub.published.prompt_dt import find_prompt_dt
from m3dt_agent.hub.published.tdmpc2 import find_tdmpc2

FORMATS: Mapping[str, Callable[[Path, Wanted], Listing]] = {
    "mt160": find_mt160,
    "tdmpc2": find_tdmpc2,
    "prompt-dt": find_prompt_dt,
    "minari": find_minari,
    "lerobot": find_lerobot,
}
"""Name of the format, as `import_datasets` takes it → its finder."""
