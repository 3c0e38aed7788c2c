"""The four readers, as a user of the package meets them. Each returns what it learned, or raises.

    banks       open, load, act, copy, push, commit               datasets    validate, pack, import, pull from a folder
    published   import of every format, weights of the authors     hub         pull of a bank and of datasets, twice

`box/in` holds the input, `box/out` takes what readers write.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.guard import no_memory
from fuzz.layout import BANK, DATA, TOKEN
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.data.episodes import read_episodes
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.data.validation import validate_dataset
from m3dt_agent.errors import M3DTError
from m3dt_agent.hub.banks import pull_bank, push_bank
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.convert_weights import from_published, published_config, read_published
from m3dt_agent.hub.datasets import pull_datasets
from m3dt_agent.tasks import get

DATASET = "m3dt/reach/random-v0"
STEPS = 2

Recipe = dict[str, Any]


class WrongError(Exception):
    """A reader accepted what it must not: an action that is no number, a dataset that does not validate."""


def attempt(call: Callable[[], object]) -> str:
    """The name of the M3DTError that a call raised, or "fine".

    Raises:
        WrongError: the error hides that more memory was asked for than there is.
    """
    try:
        call()
    except M3DTError as error:
        if believed := no_memory(error):
            raise WrongError(f"it asked for memory that a file promised: {believed}") from error
        return type(error).__name__
    return "fine"


def read_bank(box: Path, recipe: Recipe) -> str:
    folder = box / "in"
    first = attempt(lambda: ExpertBank.open(folder, read_only=True))
    second = attempt(lambda: ExpertBank.open(folder, read_only=True, check="sizes").copy_to(box / "out" / "copy"))
    third = attempt(lambda: push_bank(folder, box / "out" / "pushed"))
    fourth = attempt(lambda: rewrite(ExpertBank.open(folder)))
    act(M3DTAgent.load(folder))
    return f"open: {first}, copy: {second}, push: {third}, commit: {fourth}, act: fine"


def rewrite(bank: ExpertBank) -> None:
    """Writes some of the bank's files again, as training goes on in a folder that somebody else began."""
    names = [name for name in bank.manifest.files if name.startswith(("experts/", "grown/", "statistics"))]
    bank.commit({name: bank.read(name) for name in names})


def act(agent: M3DTAgent) -> None:
    for task in agent.tasks:
        agent.reset(task=task.name)
        for step in range(STEPS):
            action = agent.act(np.full(task.obs_dim, 0.1 * step, np.float32), reward=1.0 if step else None)
            if action.shape != (task.act_dim,) or not np.isfinite(action).all():
                raise WrongError(f"act gave {action}")


def read_dataset(box: Path, recipe: Recipe) -> str:
    path, task = box / "in" / DATASET, get("reach")
    problems = validate_dataset(path, task)
    found = {
        "read": attempt(lambda: [episode.episode_return for episode in read_episodes(path)]),
        "import": attempt(lambda: import_datasets("minari", path, box / "out" / "imported", ["reach"], progress=False)),
        "pull": attempt(lambda: pull_datasets(box / "in", box / "out" / "pulled", ["reach"], progress=False)),
        "train": attempt(lambda: take_window(TaskDatasets.open(box / "in", ["reach"]), recipe["template"])),
    }
    packed = attempt(lambda: pack_dataset(path, task, box / "out" / "packed"))
    if problems and "fine" in (packed, found["pull"]):
        raise WrongError(f"it was packed or pulled although {problems[0]}")
    if not problems:
        pack_dataset(path, task, box / "out" / "packed")
    return f"{len(problems)} problem(s), " + ", ".join(f"{name}: {value}" for name, value in found.items())


def take_window(data: TaskDatasets, template: str) -> None:
    """What training takes of a dataset is finite. Steps of a pack that came with it are not looked at (docs/security.md)."""
    statistics, prompts = compute_statistics(data)["reach"], make_prompts(data, 3)["reach"]
    numbers = [statistics.mean, statistics.std, [statistics.target_return]]
    numbers += [] if template == "packed dataset" else [data.packed[0].steps]
    numbers += [array for prompt in prompts for array in (prompt.states, prompt.actions, prompt.returns_to_go)]
    if not all(np.isfinite(array).all() for array in numbers):
        raise WrongError(f"training would take numbers that are none: {statistics}, {prompts}")


def read_published_data(box: Path, recipe: Recipe) -> str:
    """One format; which, the template says."""
    kind = recipe["template"]
    if kind == "weights":
        tensors = read_published(box / "in")
        from_published(tensors, published_config(tensors, n_heads=2))
        return "weights: fine"
    format, tasks = {"mt160": ("mt160", None), "prompt-dt": ("prompt-dt", None), "tdmpc2": ("tdmpc2", None)}[kind]  # noqa: A001
    made = import_datasets(format, box / "in", box / "out", tasks, progress=False)
    for summary in made:
        if problems := validate_dataset(summary.path, summary.task):
            raise WrongError(f"an imported dataset does not validate: {problems[0]}")
    return f"{len(made)} dataset(s)"


def read_hub(box: Path, recipe: Recipe) -> str:
    where: dict[str, Any] = {"endpoint": recipe["endpoint"], "token": TOKEN, "cache_dir": box / "out" / "cache"}
    if recipe["template"] == "hub datasets":
        calls = [lambda: pull_datasets(DATA, box / "out" / "root", progress=False, overwrite=True, **where)] * 2
    else:
        calls = [
            lambda: act(M3DTAgent.from_pretrained(BANK, **where)),
            lambda: pull_bank(BANK, to=box / "out" / "copy", **where),
        ]
    first = attempt(calls[0])
    calls[1]()
    return f"first: {first}, second: fine"


READERS: dict[str, Callable[[Path, Recipe], str]] = {
    "banks": read_bank,
    "datasets": read_dataset,
    "published": read_published_data,
    "hub": read_hub,
}
