"""Where published data lies, and how its episodes are read: the four formats that `import_datasets` knows.

    mt160      <published name>/<i>.npz             one episode each, zero-padded to 39 and 8; the last two are the prompts
    tdmpc2     *.pt                                 TensorDicts (episodes, 501) of 30 tasks, row 0 without action and reward
    prompt-dt  ant_dir/ant_dir-<i>-<level>.pkl      lists of trajectories; ….-prompt-<level>.pkl hold the prompts
    minari     data/{metadata.json, main_data.hdf5} one Minari dataset

TD-MPC2's files are read in `tdmpc2.py`, pickles in `safe_pickles.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from m3dt_agent.hub.published.episodes import (
    Listing,
    Wanted,
)
from m3dt_agent.hub.published.minari import find_minari
from m3dt_agent.hub.published.mt160 import (
    find_mt160,
)
from m3dt_agent.hub.published.prompt_dt import (
    find_prompt_dt,
)
from m3dt_agent.hub.published.tdmpc2 import find_tdmpc2

# -- MT160 ---------------------------------------------------------------------------------------------------------------------


# -- Prompt-DT -----------------------------------------------------------------------------------------------------------------


# -- Minari --------------------------------------------------------------------------------------------------------------------


FORMATS: Mapping[str, Callable[[Path, Wanted], Listing]] = {
    "mt160": find_mt160,
    "tdmpc2": find_tdmpc2,
    "prompt-dt": find_prompt_dt,
    "minari": find_minari,
}
"""By the names that `import_datasets` takes."""
