"""The sound inputs that recipes start from, made once, and what of them there is to edit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grown_banks
import h5py
import published_writers as writers
import small_banks
from contracts import random_datasets
from own_tasks import WIDE

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.episodes import read_episodes, write_dataset
from m3dt_agent.hub.convert_weights import write_published
from m3dt_agent.hub.dataset_origins import FolderOrigin
from m3dt_agent.hub.dataset_records import to_json
from m3dt_agent.model import M3DT
from m3dt_agent.tasks import get

LENGTHS = (6, 5, 7, 6)


def make_bank(folder: Path) -> None:
    bank = small_banks.new_bank(folder)
    bank.commit(small_banks.parts(small_banks.random_model()), groups={"walker-run": 0, "reach": 1})


def make_grown_bank(folder: Path) -> None:
    make_bank(folder.with_name("old"))
    grown_banks.grown_bank(ExpertBank.open(folder.with_name("old")), folder, WIDE, get("ant-dir-7"))
    shutil.rmtree(folder.with_name("old"))


def make_packed_dataset(folder: Path) -> None:
    random_datasets(folder, ["reach"], episodes=4, length=6)


def make_dataset(folder: Path) -> None:
    make_packed_dataset(folder)
    shutil.rmtree(folder / ".packed")


def make_labelled_dataset(folder: Path) -> None:
    (task,) = random_datasets(folder / "plain", ["reach"], episodes=4, length=6).tasks
    episodes = read_episodes(folder / "plain/m3dt/reach/random-v0")
    labelled = (dataclasses.replace(episode, demonstrator_actions=-episode.actions) for episode in episodes)
    write_dataset(folder, task, "random", labelled, metadata={})
    shutil.rmtree(folder / "plain")


def make_hub_datasets(folder: Path) -> None:
    make_dataset(folder)
    (folder / "datasets.json").write_text(to_json(FolderOrigin(folder).records(None, None)))


def make_mt160(folder: Path) -> None:
    writers.write_mt160(folder, get("reach"), LENGTHS)


def make_prompt_dt(folder: Path) -> None:
    for level, lengths in (("expert", (5, 6, 7)), ("prompt-expert", (6,))):
        file = folder / "cheetah_vel" / f"cheetah_vel-20-{level}.pkl"
        writers.write_prompt_dt(file, get("cheetah-vel-20"), lengths, protocol=2)


def make_tdmpc2(folder: Path) -> None:
    episodes = [(0, writers.trajectory(get("walker-stand"), 8, seed)) for seed in range(4)]
    writers.save_tensordict(folder / "chunk_0.pt", writers.tdmpc2_tensors(episodes))


def make_weights(folder: Path) -> None:
    config = ModelConfig(8, 1, 2, n_experts=2, context_length=3, prompt_length=2, max_timesteps=60, residual="published")
    write_published(M3DT(config), folder)


TEMPLATES: dict[str, dict[str, Callable[[Path], None]]] = {
    "banks": {"bank": make_bank, "grown bank": make_grown_bank},
    "datasets": {"dataset": make_dataset, "labelled dataset": make_labelled_dataset, "packed dataset": make_packed_dataset},
    "published": {"mt160": make_mt160, "prompt-dt": make_prompt_dt, "tdmpc2": make_tdmpc2, "weights": make_weights},
    "hub": {"hub bank": make_bank, "hub datasets": make_hub_datasets},
}
"""Reader → the templates that its recipes start from."""


def make_templates(root: Path) -> dict[str, dict[str, Any]]:
    """Makes all templates under `root`; template → what there is to edit."""
    described = {}
    for templates in TEMPLATES.values():
        for name, make in templates.items():
            folder = root / name
            folder.mkdir(parents=True)
            if name.endswith("bank"):
                folder.rmdir()
            make(folder)
            described[name] = describe(folder)
    return described


def describe(folder: Path) -> dict[str, Any]:
    """Names of files and folders; texts of the JSON files and of safetensors headers; objects in HDF5 files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    found: dict[str, Any] = {
        "files": names,
        "folders": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()),
        "json": {},
        "headers": {},
        "hdf5": {},
    }
    for path, name in zip(files, names, strict=True):
        if path.suffix == ".json":
            found["json"][name] = path.read_text()
        elif path.suffix == ".safetensors":
            content = path.read_bytes()
            found["headers"][name] = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
        elif path.suffix == ".hdf5":
            found["hdf5"][name] = hdf5_objects(path)
    return found


def hdf5_objects(path: Path) -> dict[str, list[int]]:
    """Name → shape; [] for groups."""
    found: dict[str, list[int]] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: list(getattr(item, "shape", ()))}))
    return found


if __name__ == "__main__":
    print(json.dumps(make_templates(Path(sys.argv[1])), indent=1))
