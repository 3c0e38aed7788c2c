"""`fit_stage` and `group_tasks`: order, settings, continuing, and what goes wrong on the way."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from m3dt_agent.bank import ExpertBank, journal
from m3dt_agent.bank.tensor_files import Check, FileRecord
from m3dt_agent.config import BackboneConfig, DataConfig, ExpertsConfig, RouterConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, DiskSpaceError, StageError, UnknownTaskError
from m3dt_agent.jobs import LocalProcesses
from m3dt_agent.model import moe
from m3dt_agent.training import Fanout, LogRecord, fit_stage, group_tasks
from m3dt_agent.training.checkpoint import training_lock
from m3dt_agent.training.expert_jobs import remove_finished_jobs
from m3dt_agent.training.planning import settling

MakeBank = Callable[..., ExpertBank]
SHARED: dict[str, Any] = {"steps": 6, "batch_size": 4, "warmup_steps": 4, "log_every": 1, "checkpoint_every": 2}
BACKBONE = BackboneConfig(**SHARED)
EXPERTS = ExpertsConfig(**SHARED, grouping="random", experts_at_once=2)
ROUTER = RouterConfig(**SHARED)


class StoppedError(Exception):
    """Raised from `on_log`, like a Ctrl-C at that moment."""


def stop_at(step: int, kind: type[BaseException] = StoppedError, after: int = 0) -> Callable[[LogRecord], None]:
    seen = []

    def on_log(record: LogRecord) -> None:
        seen.append(record)
        if record.step == step and len(seen) > after:
            raise kind

    return on_log


def fit(stage: str | int, data: TaskDatasets, bank: ExpertBank, config: Any, **kwargs: Any) -> None:
    fit_stage(stage, data, bank, config, progress=False, **kwargs)


def files(bank: ExpertBank) -> dict[str, str]:
    return {name: record.sha256 for name, record in ExpertBank.open(bank.path).manifest.files.items()}


def test_stages_build_on_what_a_bfloat16_bank_has_stored(data: TaskDatasets, make_bank: MakeBank, tmp_path: Path) -> None:
    """They train as on a float32 bank of the same numbers, and what they end with is rounded."""
    fit("backbone", data, make_bank("exact"), BACKBONE)
    bank = ExpertBank.open(tmp_path / "exact").copy_to(tmp_path / "narrow", storage="bfloat16")
    for stage, config in (("experts", EXPERTS), ("router", ROUTER)):
        wide = bank.copy_to(tmp_path / f"wide-{stage}", storage="float32")
        for each in (bank, wide):
            fit(stage, data, each, config)
        bank.refresh()
        assert bank.storage == "bfloat16"
        for name in bank.manifest.files.keys() - {"statistics.safetensors", "prompts.safetensors"}:
            assert {tensor.dtype for tensor in load_file(bank.path / name).values()} == {torch.bfloat16}
            expected = {key: tensor.to(torch.bfloat16).float() for key, tensor in wide.read(name).items()}
            torch.testing.assert_close(bank.read(name), expected, rtol=0, atol=0)


def test_stages_come_in_order(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    with pytest.raises(StageError, match="experts stage builds on the backbone"):
        fit("experts", data, bank, EXPERTS)
    with pytest.raises(StageError, match="router stage builds on the backbone"):
        fit(3, data, bank, ROUTER)
    fit(1, data, bank, BACKBONE)
    with pytest.raises(StageError, match=r"lacks \[0, 1, 2\]; run fit_stage\('experts', ...\) first"):
        fit("router", data, bank, ROUTER)
    fit(2, data, bank, EXPERTS)
    fit(3, data, bank, ROUTER)
    assert [ExpertBank.open(bank.path).status(stage) for stage in (1, 2, 3)] == ["done"] * 3
    assert bank.default_experts == "mixture"
    with pytest.raises(StageError, match="cannot be trained further"):
        fit(1, data, bank, dataclasses.replace(BACKBONE, steps=8))


def test_data_must_be_the_banks(data: TaskDatasets, other_data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    with pytest.raises(BankError, match=r"only in the data: \[\], only in the bank: \['reach'\]"):
        fit(1, data.subset([task.name for task in data.tasks[:-1]]), bank, BACKBONE)
    with pytest.raises(BankError, match="another order"):
        fit(1, data.subset([task.name for task in data.tasks[::-1]]), bank, BACKBONE)
    with pytest.raises(BankError, match=r"n_prompts=2.*n_prompts=1"):
        fit(1, TaskDatasets(data.tasks, data.packed, DataConfig(n_prompts=1)), bank, BACKBONE)
    with pytest.raises(StoppedError):
        fit(1, data, bank, BACKBONE, on_log=stop_at(5))
    with pytest.raises(BankError, match="started on something else \\(data was"):
        fit(1, other_data, bank, BACKBONE)
    fit(1, data, bank, BACKBONE)
    with pytest.raises(BankError, match="was trained on data"):
        fit(1, other_data, bank, BACKBONE)


def test_a_stage_without_experts_and_a_config_of_another_stage(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank(n_experts=0)
    with pytest.raises(ConfigError, match="n_experts=0"):
        fit(2, data, bank, EXPERTS)
    with pytest.raises(ConfigError, match="stage 'backbone' takes a BackboneConfig; got RouterConfig"):
        fit(1, data, bank, ROUTER)


def test_a_finished_stage_says_so_and_does_nothing(
    data: TaskDatasets, make_bank: MakeBank, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = make_bank()
    fit(1, data, bank, BACKBONE)
    before = files(bank)
    for config in (BACKBONE, None):
        fit_stage(1, data, bank, config, on_log=stop_at(1))
        assert "finished already (6 steps); nothing to do" in capsys.readouterr().err
    assert files(bank) == before


def test_a_stage_checks_every_file_once_at_its_start(
    data: TaskDatasets, make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    verify = journal.verify

    def counted(path: Path, record: FileRecord, check: Check = "contents") -> None:
        if check == "contents" and path.suffix != ".next":
            checked.append(path.name)
        verify(path, record, check)

    monkeypatch.setattr(journal, "verify", counted)
    bank = make_bank()
    for stage, config in ((1, BACKBONE), (2, EXPERTS), (3, ROUTER)):
        expected = sorted(Path(name).name for name in bank.manifest.files)
        checked.clear()
        fit(stage, data, bank, config)
        assert sorted(checked) == expected
    (bank.path / "experts" / "001.safetensors").write_bytes(b"damaged")
    with pytest.raises(BankError, match=r"001\.safetensors"):
        fit(3, data, bank, ROUTER)


def test_settings_may_not_change_but_steps_may_grow(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank, longer = make_bank(), dataclasses.replace(BACKBONE, steps=10)
    with pytest.raises(StoppedError):
        fit(1, data, bank, BACKBONE, on_log=stop_at(3))
    for changes, told in (
        ({"learning_rate": 0.5, "seed": 3}, r"learning_rate 0\.0001 → 0\.5, seed 0 → 3"),
        ({"threads": torch.get_num_threads() + 1}, "threads"),
        ({"steps": 5}, "steps 6 → 5"),
    ):
        with pytest.raises(ConfigError, match=told):
            fit(1, data, bank, dataclasses.replace(BACKBONE, **changes))
    fit(1, data, bank, BACKBONE)
    fit(1, data, bank, longer)
    uninterrupted = make_bank("uninterrupted")
    fit(1, data, uninterrupted, longer)
    assert files(bank) == files(uninterrupted)
    with pytest.raises(ConfigError, match="steps 10 → 6"):
        fit(1, data, bank, BACKBONE)


def test_none_continues_with_the_settings_it_was_started_with(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank, whole = make_bank(), make_bank("whole")
    with pytest.raises(StoppedError):
        fit(1, data, bank, BACKBONE, on_log=stop_at(3))
    assert bank.status("backbone") == "partial"
    fit(1, data, bank, None)
    fit(1, data, whole, BACKBONE)
    assert files(bank) == files(whole)


def test_ctrl_c_leaves_a_bank_with_the_experts_that_were_finished(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank, whole = make_bank(), make_bank("whole")
    for each in (bank, whole):
        fit(1, data, each, BACKBONE)
    with pytest.raises(KeyboardInterrupt):
        fit(2, data, bank, EXPERTS, on_log=stop_at(3, KeyboardInterrupt, after=6))
    usable = ExpertBank.open(bank.path)
    assert (usable.finished_experts, usable.status("experts"), usable.default_experts) == ((0, 1), "partial", "none")
    usable.model()
    steps: list[tuple[tuple[int, ...], int]] = []
    fit(2, data, usable, EXPERTS, on_log=lambda record: steps.append((record.experts, record.step)))
    assert steps == [((2,), step) for step in (3, 4, 5, 6)]
    fit(2, data, whole, EXPERTS)
    assert files(usable) == files(whole)
    with pytest.raises(StageError, match="no checkpoint is left"):
        fit(2, data, usable, dataclasses.replace(EXPERTS, steps=8))


def test_chunks_do_not_change_the_experts(data: TaskDatasets, make_bank: MakeBank) -> None:
    """In float64, experts saved as float32 are the same up to one rounding."""
    banks = [make_bank(str(size)) for size in (1, 2, 3)]
    for size, bank in enumerate(banks, 1):
        fit(1, data, bank, BACKBONE)
        fit(2, data, bank, dataclasses.replace(EXPERTS, experts_at_once=size, precision="float64"))
    for expert in range(3):
        tensors = [bank.read(f"experts/{expert:03d}.safetensors") for bank in banks]
        for name, tensor in tensors[0].items():
            for other in tensors[1:]:
                torch.testing.assert_close(other[name], tensor, rtol=2e-7, atol=1e-10)


def test_experts_can_be_trained_in_different_places(data: TaskDatasets, make_bank: MakeBank) -> None:
    whole, mine, yours = make_bank("whole"), make_bank("mine"), make_bank("yours")
    one_by_one = dataclasses.replace(EXPERTS, experts_at_once=1)
    for bank in (whole, mine, yours):
        fit(1, data, bank, BACKBONE)
    fit(2, data, whole, one_by_one)
    fit(2, data, mine, one_by_one, experts=[1])
    assert (mine.finished_experts, mine.status("experts")) == ((1,), "partial")
    fit(2, data, yours, one_by_one, experts=[0, 2])
    assert files(mine) | files(yours) == {name: sha for name, sha in files(whole).items() if name != "router.safetensors"}
    fit(2, data, mine, one_by_one, experts=[1])  # done before, kept
    fit(2, data, mine, None)  # the rest
    assert files(mine) == files(whole)
    fit(2, data, mine, one_by_one, experts=np.array([1, 2]))  # type: ignore[arg-type]  # integers of NumPy are integers
    wrong: list[Any] = [[], [3], [-1], [True], [1.0], [None], ["1"], "1", 1, np.int64(1), np.array([1.5])]
    for chosen in wrong:
        with pytest.raises(ConfigError, match=r"experts must be some of 0 … 2, in a list; got"):
            fit(2, data, mine, one_by_one, experts=chosen)
    with pytest.raises(ConfigError, match="goes with stage 'experts'; got stage 'router'"):
        fit(3, data, mine, None, experts=[1])


def test_the_size_of_stacks_is_settled_once_and_kept(
    data: TaskDatasets, make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moe, "TILE_BYTES", 1)  # a CPU with no cache to speak of: stacks of two
    bank, asked = make_bank(), dataclasses.replace(EXPERTS, experts_at_once=None)
    fit(1, data, bank, BACKBONE)
    with pytest.raises(StoppedError):
        fit(2, data, bank, asked, on_log=stop_at(4))
    monkeypatch.undo()  # a larger cache, where all three would be one stack
    fit(2, data, bank, asked)
    assert bank.manifest.stages["experts"]["config"]["experts_at_once"] == 2
    whole = make_bank("whole")
    fit(1, data, whole, BACKBONE)
    fit(2, data, whole, EXPERTS)
    assert files(bank) == files(whole)


def test_the_faster_precision_is_settled_once_and_kept(
    data: TaskDatasets, make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, whole, asked = make_bank(), make_bank("whole"), dataclasses.replace(BACKBONE, precision="auto")
    monkeypatch.setattr(settling, "faster_precision", lambda *_: "bfloat16")
    with pytest.raises(StoppedError):
        fit(1, data, bank, asked, on_log=stop_at(4))
    monkeypatch.setattr(settling, "faster_precision", lambda *_: "float32")  # another machine
    fit(1, data, bank, asked)
    assert bank.manifest.stages["backbone"]["config"]["precision"] == "bfloat16"
    fit(1, data, whole, dataclasses.replace(BACKBONE, precision="bfloat16"))
    assert files(bank) == files(whole)


def checkpoints(bank: ExpertBank) -> list[Path]:
    return sorted((bank.path / "resume").glob("backbone-*"))


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    data: TaskDatasets, make_bank: MakeBank, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, whole = make_bank(), make_bank("whole")
    with pytest.raises(StoppedError):
        fit(1, data, bank, BACKBONE, on_log=stop_at(5))
    assert [path.name for path in checkpoints(bank)] == ["backbone-2", "backbone-4"]
    content = bytearray((bank.path / "resume/backbone-4" / file).read_bytes())
    content[len(content) // 2] ^= 4
    (bank.path / "resume/backbone-4" / file).write_bytes(content)
    steps: list[int] = []
    fit_stage(1, data, bank, BACKBONE, on_log=lambda record: steps.append(record.step))
    assert steps == [3, 4, 5, 6]
    assert "is damaged, using the one before it" in capsys.readouterr().err
    fit(1, data, whole, BACKBONE)
    assert files(bank) == files(whole)
    rows = (bank.path / "logs/backbone.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == list("123456")


def test_nothing_but_damaged_checkpoints_is_an_error(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    with pytest.raises(StoppedError):
        fit(1, data, bank, BACKBONE, on_log=stop_at(5))
    for path in checkpoints(bank):
        (path / "optimizer.safetensors").unlink()
    with pytest.raises(BankError, match="every checkpoint of run 'backbone' is damaged"):
        fit(1, data, bank, BACKBONE)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    data: TaskDatasets, make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, whole, rename = make_bank(), make_bank("whole"), os.rename

    def full(source: Path, target: Path) -> None:
        if target.name == "backbone-4":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(DiskSpaceError, match="backbone-4"):
            fit(1, data, bank, BACKBONE)
    assert [path.name for path in (bank.path / "resume").iterdir() if path.name != ".lock"] == ["backbone-2"]
    fit(1, data, bank, BACKBONE)
    fit(1, data, whole, BACKBONE)
    assert files(bank) == files(whole)


def test_a_disk_too_small_is_told_before_the_first_step(
    data: TaskDatasets, make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make_bank()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DiskSpaceError, match=r"backbone stage needs .* MB"):
        fit(1, data, bank, BACKBONE, on_log=stop_at(1))


def test_one_process_at_a_time(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    with training_lock(bank.path), pytest.raises(BankError, match="another process is training"):
        fit(1, data, bank, BACKBONE)
    fit(1, data, bank, BACKBONE)


def test_groups_are_kept_made_again_and_guarded(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    by_gradient = dataclasses.replace(EXPERTS, grouping="gradient", grouping_batches=1, grouping_runs=2)
    with pytest.raises(StageError, match="needs a backbone"):
        group_tasks(data, bank, by_gradient, progress=False)
    first = group_tasks(data, bank, EXPERTS, progress=False)
    assert sorted(list(first.values()).count(e) for e in range(3)) == [2, 2, 2]
    assert group_tasks(data, bank, EXPERTS, progress=False) == first
    fit(1, data, bank, BACKBONE)
    second = group_tasks(data, bank, by_gradient, progress=False)
    assert set(second) == {task.name for task in data.tasks}
    assert set(second.values()) == {0, 1, 2}
    fit(2, data, bank, EXPERTS)
    assert bank.groups == second  # somebody has grouped the tasks: stage 2 takes what there is
    with pytest.raises(StageError, match="cannot change"):
        group_tasks(data, bank, EXPERTS, progress=False)


@pytest.mark.parametrize("grouping", ["random", "gradient"])
def test_more_experts_than_tasks(data: TaskDatasets, make_bank: MakeBank, grouping: Any) -> None:
    bank = make_bank(n_experts=7)
    fit(1, data, bank, BACKBONE)
    with pytest.raises(ConfigError, match="6 tasks cannot be grouped for 7 experts"):
        fit(2, data, bank, dataclasses.replace(EXPERTS, grouping=grouping))


def test_early_stop_ends_where_conflict_peaks_and_stays_ended(
    data: TaskDatasets, make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make_bank()
    measured = iter([0.1, 0.5, 0.2, 0.1, 0.0, 0.0])
    monkeypatch.setattr("m3dt_agent.training.backbone.gradient_conflict", lambda _: next(measured))
    config = dataclasses.replace(BACKBONE, steps=50, conflict_every=2, early_stop=True, conflict_patience=2)
    steps: list[int] = []
    fit(1, data, bank, config, on_log=lambda record: steps.append(record.step))
    assert steps[-1] == 10  # smoothed: 0.1, 0.18, 0.184 (the peak), 0.167, 0.134
    assert bank.status(1) == "done"
    fit(1, data, bank, config, on_log=stop_at(11))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "data that are paths": ({"data": ["datasets"]}, "data must be of type TaskDatasets; got list"),
    "a bank that is a path": ({"bank": "bank"}, "bank must be of type ExpertBank; got str"),
    "a config that is a dict": ({"config": {"steps": 3}}, "stage 'backbone' takes a BackboneConfig; got dict"),
    "a config that is a number": ({"config": 3}, "stage 'backbone' takes a BackboneConfig; got int"),
    "another stage's config": ({"config": ROUTER}, "stage 'backbone' takes a BackboneConfig; got RouterConfig"),
    "a fanout that is a number": ({"fanout": 2}, "fanout must be of type Fanout or None; got int"),
    "a start that is a path": ({"start": "bank"}, "start must be of type ExpertBank or None; got str"),
    "a start of another stage": ({"start": "itself"}, "start= goes with stage 'router'; got stage 'backbone'"),
    "something uncallable": ({"on_log": "log.txt"}, "on_log must be of type Callable or None; got str"),
    "a device of another machine": ({"device": "cuda:7"}, "device must be one of cpu.*got 'cuda:7'"),
    "no device": ({"device": "gpu"}, "device must be one of cpu.*got 'gpu'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_that_cannot_work_is_refused_and_nothing_is_written(
    data: TaskDatasets, make_bank: MakeBank, case: str
) -> None:
    changes, message = WRONG[case]
    bank = make_bank()
    if changes.get("start") == "itself":
        changes = {"start": bank}
    before = sorted(bank.path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        fit_stage(**{"stage": "backbone", "data": data, "bank": bank, "progress": False} | changes)
    assert [path for path in sorted(bank.path.rglob("*")) if path.name not in (".lock", "resume")] == before


@pytest.mark.parametrize("stage", ["", "gate", 0, 4, 1.0, None, True, b"router", ["router"], np.float64(1)])
def test_a_stage_is_a_name_or_a_number(data: TaskDatasets, make_bank: MakeBank, stage: Any) -> None:
    with pytest.raises(UnknownTaskError, match="unknown stage"):
        fit_stage(stage, data, make_bank())


@pytest.mark.parametrize("config", [ROUTER, {"grouping": "random"}, 3])
def test_grouping_takes_the_config_of_its_stage(data: TaskDatasets, make_bank: MakeBank, config: Any) -> None:
    bank = make_bank()
    with pytest.raises(ConfigError, match="grouping takes an ExpertsConfig; got"):
        group_tasks(data, bank, config)
    with pytest.raises(ConfigError, match="data must be of type TaskDatasets; got"):
        group_tasks(config, bank)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_a_job_trains_a_whole_number_of_experts(number: Any) -> None:
    with pytest.raises(ConfigError, match="experts_per_job must be None or an integer >= 1; got"):
        Fanout(LocalProcesses(1), experts_per_job=number)
    assert Fanout(LocalProcesses(1), experts_per_job=np.int64(2)).experts_per_job == 2  # type: ignore[arg-type]


def test_folders_of_other_names_are_named_or_left_alone(data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    fit(1, data, bank, BACKBONE)
    arabic = "\u0660\u0660\u0660-\u0660\u0660\u0661"  # 000-001 in other digits
    strangers = [bank.path / "resume" / "jobs" / name for name in ("a-b", "000-x", arabic, "000-001-old", "-1--1")]
    for folder in strangers:
        folder.mkdir(parents=True)
    fit(2, data, bank, EXPERTS)
    remove_finished_jobs(bank)
    assert all(folder.is_dir() for folder in strangers)
    other = make_bank("other")
    fit(1, data, other, BACKBONE)
    (other.path / "resume" / "experts-abc-5").mkdir()
    with pytest.raises(BankError, match=r"every checkpoint of run 'experts-abc' is damaged; remove them"):
        fit(2, data, other, EXPERTS)
