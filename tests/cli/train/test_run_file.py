"""`m3dt train --config FILE` and --print-config: a file makes the same bank, and what it may say."""

from __future__ import annotations

import contextlib
import io
import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from contracts import random_datasets
from small_trackers import Broken, Notebook

from m3dt_agent.bank import ExpertBank
from m3dt_agent.cli import main
from m3dt_agent.config import STAGE_CONFIGS, STAGES, from_dict, train_preset
from m3dt_agent.training.tracking import trackers

Run = Callable[..., tuple[int, str, str]]
TASKS = ("cheetah-vel-3", "cheetah-vel-4")
TRAIN = ("train", *TASKS, "--preset", "tiny", "--experts", "2", "--steps", "2", "--threads", "1", "--grouping", "random")


def m3dt(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        return main(["--quiet", *map(str, arguments)]), out.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Notebook]:
    """A folder with datasets and a bank that was trained by options, the run as it was printed before, and what was tracked.

    Another tracker was broken from the beginning.
    """
    pytest.importorskip("mujoco")
    folder, told = tmp_path_factory.mktemp("run"), Notebook()
    random_datasets(folder / "datasets", TASKS)
    command = (*TRAIN, "--root", folder / "datasets", "--bank", folder / "bank")
    code, printed = m3dt(*command, "--print-config")
    assert code == 0
    assert not (folder / "bank").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers, "TRACKERS", {"notebook": lambda: told, "broken": lambda: Broken("start")})
        code, _ = m3dt(*command, "--track", "notebook,broken")
    assert code == 0
    return folder, printed, told


def test_the_printed_file_makes_the_same_bank(trained: tuple[Path, str, Notebook]) -> None:
    """Bit for bit, without the trackers that followed the first one."""
    folder, printed, told = trained
    (folder / "run.toml").write_text(printed)
    code, _ = m3dt("train", "--config", folder / "run.toml", "--bank", folder / "again")
    assert code == 0
    first, again = (ExpertBank.open(folder / name) for name in ("bank", "again"))
    assert again.content_hash == first.content_hash
    assert again.manifest.stages == first.manifest.stages
    assert [run.name for run in told.of("start")] == ["backbone", "experts-000-001", "router"]
    assert told.of("finish")[-1] == {"bank": first.content_hash}


def test_the_file_that_the_bank_keeps_means_the_same_run(trained: tuple[Path, str, Notebook], run: Run) -> None:
    folder, printed, _ = trained
    kept = tomllib.loads((folder / "bank" / "logs" / "train.toml").read_text())
    expected = tomllib.loads(printed)
    assert kept.pop("track") == "notebook,broken"
    for stage in STAGES:
        record = from_dict(STAGE_CONFIGS[stage], ExpertBank.open(folder / "bank").manifest.stages[stage]["config"])
        assert kept["stages"][stage] == {name: value for name, value in asdict(record).items() if value is not None}
        kept["stages"][stage].pop("experts_at_once", None)  # settled when the stage began
    assert kept == expected
    code, again, _ = run("train", "--config", folder / "bank/logs/train.toml", "--bank", folder / "third", "--print-config")
    assert code == 0
    assert tomllib.loads(again)["experts"] == 2
    assert tomllib.loads(again)["bank"] == str(folder / "third")


def test_an_evaluation_of_the_bank_is_tracked_beside_its_training(
    trained: tuple[Path, str, Notebook], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    folder, _, told = trained
    scores = Notebook()
    monkeypatch.setattr(trackers, "TRACKERS", {"notebook": lambda: scores})
    options = (TASKS[0], "--episodes", 1, "--workers", 0, "--track", "notebook", "--json")
    code, out, _ = run("eval", folder / "bank", *options)
    assert code == 0
    (start,), ((values, _),) = scores.of("start"), scores.of("log")
    assert start.experiment == told.of("start")[0].experiment
    assert values[f"score/{TASKS[0]}"] == json.loads(out)["tasks"][TASKS[0]]["mean_score"]
    code, _, err = run("eval", "zero", *options)
    assert (code, err.count("\n")) == (1, 1)
    assert "--track goes with a bank in a folder, whose logs/ it writes to; got zero" in err


def printed(run: Run, folder: Path, content: str, *arguments: object) -> dict[str, Any]:
    """The run that a file and options mean."""
    (folder / "run.toml").write_text(content)
    code, out, err = run("train", "--config", folder / "run.toml", "--bank", folder / "bank", *arguments, "--print-config")
    assert code == 0, err
    return tomllib.loads(out)


def test_what_is_typed_comes_before_the_stages_and_these_before_the_keys_at_the_top(run: Run, tmp_path: Path) -> None:
    file = """
        tasks = ["reach", "mt10"]
        preset = "tiny"
        resume = false
        early_stop = true
        conflict_every = 5
        steps = 7
        learning_rate = 1
        [stages.router]
        steps = 8
        concentrate_after = 0.25
        domain_weights = { metaworld = 2 }
    """
    found = printed(run, tmp_path, file)
    assert found["tasks"] == ["reach", "mt10"]
    assert (found["preset"], found["resume"], found["root"]) == ("tiny", False, "datasets")
    assert [found["stages"][stage]["steps"] for stage in STAGES] == [7, 7, 8]
    backbone, router = found["stages"]["backbone"], found["stages"]["router"]
    assert (backbone["early_stop"], backbone["learning_rate"]) == (True, 1.0)
    assert (router["concentrate_after"], router["domain_weights"]) == (0.25, {"metaworld": 2})
    typed = printed(run, tmp_path, file, "--steps", 3, "--set", "mt20", "--resume", "--stage", "router")
    assert (typed["set"], typed["resume"], "tasks" in typed) == ("mt20", True, False)
    assert list(typed["stages"]) == ["router"]
    assert (typed["stages"]["router"]["steps"], typed["stages"]["router"]["concentrate_after"]) == (3, 0.25)
    assert "set" not in printed(run, tmp_path, 'set = "mt10"', "reach")


def test_without_options_the_printed_run_is_that_of_the_preset(run: Run, tmp_path: Path) -> None:
    found = printed(run, tmp_path, "")
    assert found["preset"] == "small"
    for stage in STAGES:
        config = train_preset("small", stage)
        assert found["stages"][stage]["steps"] == config.steps
        assert found["stages"][stage]["weight_decay"] == config.weight_decay


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stepz = 3", "unknown key of {path}: 'stepz'; did you mean steps"),
        ("episodes = 3", "unknown key of {path}: 'episodes'; valid: tasks, all, set"),
        ("config = 'other.toml'", "unknown key of {path}: 'config'"),
        ("steps = '3'", "{path}: steps must be an integer; got '3'"),
        ("steps = 3.5", "{path}: steps must be an integer; got 3.5"),
        ("steps = true", "{path}: steps must be an integer; got True"),
        ("root = 3", "{path}: root must be a string; got 3"),
        ("tasks = 'reach'", "{path}: tasks must be a list; got 'reach'"),
        ("all = 1", "{path}: all must be true or false; got 1"),
        ("grouping = 'no'", '{path}: grouping must be one of "random", "gradient"; got \'no\''),
        ("tasks = ['reach', 'reach']", "{path}: tasks names 'reach' twice"),
        ("tasks = ['reech']", "unknown task 'reech'"),
        ("steps = 3\nsteps = 4", "{path} is not a TOML file: "),
        ("[train", "{path} is not a TOML file: "),
        ("[steps]", "{path}: steps must be an integer; got {{}}"),
        ("stages = 3", "{path}: stages must be an object; got 3; settings of a stage are a table, like [stages.router]"),
        ("[stages.rooter]", "unknown stage in {path}: 'rooter'; did you mean router?"),
        ("[stages.router]\nearly_stop = true", "unknown key of {path}, [stages.router]: 'early_stop'"),
        ("[stages.router]\nguides = 1", "unknown key of {path}, [stages.router]: 'guides'; did you mean guide?"),
        ("[stages.router]\nsteps = 'x'", "RouterConfig.steps must be an integer; got 'x'"),
        ("track = 'wandb,tensorbord'", "trackers are some of tensorboard, wandb, trackio, each once; got 'tensorbord'"),
    ],
)
def test_what_a_file_may_not_say(run: Run, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    code, out, err = run("train", "--config", path, "--bank", tmp_path / "bank", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: " + message.format(path=path)), err
    assert err.count("\n") == 1
    assert not (tmp_path / "bank").exists()


def test_help_is_shown_whatever_the_file_is(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("train", "--config", tmp_path / "missing.toml", "--help")
    assert code == 0
    assert "--print-config" in out
