"""How collections and imports are recognised: the fingerprints and folders they are found by, without a simulator.

Each is asked for where something else of its name lies, which is refused with what was asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.runs.data import level_shares, source_name
from m3dt_agent.cli import main as m3dt
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.errors import DatasetError, M3DTError
from m3dt_agent.tasks import get

GOLDEN = Path(__file__).parent / "golden"
Maker = Callable[[Path], bool]
"""Makes datasets under a root; whether it kept those that were there."""
BENCHMARKED = (("reach", "mixture", None), ("cartpole-balance", "best", 10), ("cheetah-vel-20", "expert", 1))


def lay_dataset(root: Path, name: str, metadata: Mapping[str, Any], steps: str = "") -> Path:
    """The two files of the dataset called `name`; returns its folder."""
    folder = root / name / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "main_data.hdf5").write_text(steps)
    return folder.parent


def asked_for(make: Maker, root: Path, name: str) -> str:
    """The fingerprint of what `make` makes, from its refusal to keep another dataset of that name."""
    lay_dataset(root, name, {})
    try:
        make(root)
    except DatasetError as error:
        if found := re.search(r"asked for was (.*)\. Choose", str(error)):
            return found[1]
        raise
    raise RuntimeError(f"another {name} was kept or replaced")


def staging(make: Maker, root: Path) -> str:
    """The folder in which `make` would look for what a kill left, from its failure to make it in a file."""
    root.mkdir(parents=True)
    (root / ".collect").touch()
    try:
        make(root)
    except M3DTError as error:
        if found := re.search(r"(\S+) cannot be used: there is a file where a folder should be", str(error)):
            return str(Path(found[1]).relative_to(root))
        raise
    raise RuntimeError("it began elsewhere")


def collections() -> dict[str, Maker]:
    """By the name of the dataset they make: the command's options, a policy of one's own, and what benchmarks collect."""
    options = {
        "m3dt/reach/expert-v0": ("--level", "expert", "--episodes", "10", "--stop-after-success", "5"),
        "m3dt/cartpole-balance/novice-v0": ("--level", "novice+0.3", "--noise", "0.1", "--seed", "7"),
        "m3dt/cheetah-vel-20/mixed-v0": ("--mixture", "random:0.2,expert:0.8"),
        "m3dt/cartpole-balance/custom-v0": ("--weights", "policies.safetensors", "--level", "medium"),
    }
    found: dict[str, Maker] = {name: command("collect", name.split("/")[1], *given) for name, given in options.items()}
    # any function whose module stays what it is
    found["m3dt/reach/own-v0"] = function("reach", CollectConfig({"custom": 1.0}, source="own"), policy=json.loads)
    for task, condition, stop in BENCHMARKED:
        source = source_name(condition, 24, 0, stop)
        config = CollectConfig(level_shares(get(task), condition), 0.0, 24, 0, source, stop)
        found[f"m3dt/{task}/{source}-v0"] = function(task, config)
    return found


def imports(published: Path) -> dict[str, Maker]:
    """By the name of the dataset they make: of files, written to `published`, that have the right names and lengths."""
    files = [f"mt160/reach-v2/{i}.npz" for i in range(3)]
    files += [f"prompt-dt/cheetah_vel/cheetah_vel-20-{level}.pkl" for level in ("expert", "prompt-expert")]
    for i, file in enumerate(files):
        (published / file).parent.mkdir(parents=True, exist_ok=True)
        (published / file).write_text("x" * i)
    lay_dataset(published, "minari", {"dataset_id": "D4RL/door/human-v2"})
    tdmpc2 = GOLDEN / "tdmpc2_tensordict_0.9.1.pt"
    return {
        "m3dt/reach/published-v0": command("data", "import", "mt160", published / "mt160", "reach"),
        "m3dt/cheetah-vel-20/published-v0": command("data", "import", "prompt-dt", published / "prompt-dt"),
        "m3dt/reacher-easy/published-v0": command("data", "import", "tdmpc2", tdmpc2, "reacher-easy"),
        "m3dt/reach/door-v0": command("data", "import", "minari", published / "minari", "reach", "--source", "door"),
    }


def command(*arguments: object) -> Maker:
    """A command of `m3dt`, run in this process."""

    def make(root: Path) -> bool:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = m3dt([*map(str, arguments), "--root", str(root), "--json"])
        if code:
            raise DatasetError(err.getvalue())
        return all(row["kept"] for row in json.loads(out.getvalue()))

    return make


def function(task: str, config: CollectConfig, policy: Callable[..., Any] | None = None) -> Maker:
    """`collect`, in this process."""
    return lambda root: all(made.kept for made in collect([get(task)], root, config, policy=policy, workers=0))
