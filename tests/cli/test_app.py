"""The command line: results on stdout, everything else on stderr, exit codes, and real runs of every command."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent.bank import ExpertBank
from m3dt_agent.cli import main
from m3dt_agent.cli.bench import find_checkout
from m3dt_agent.cli.collect import collection_estimate, parse_mixture
from m3dt_agent.cli.shared.output import quiet_stdout, size
from m3dt_agent.errors import ConfigError
from m3dt_agent.scores import read_rows
from m3dt_agent.tasks import TASKS, get

NAMES = ["cheetah-vel-20", "cheetah-vel-21", "cheetah-vel-22"]  # the fastest simulator there is
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `datasets` of three tasks and a `bank` trained through all stages, made by the commands themselves."""
    pytest.importorskip("mujoco")
    folder = tmp_path_factory.mktemp("cli")
    root, bank = str(folder / "datasets"), str(folder / "bank")
    assert main(["collect", *NAMES, "--root", root, "--episodes", "3", "--workers", "0"]) == 0
    assert main(["train", *NAMES, "--root", root, "--bank", bank, "--preset", "tiny", "--steps", "2", "--threads", "1"]) == 0
    return folder


def test_help_lists_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in (
        "tasks",
        "collect",
        "behavior",
        "data",
        "train",
        "eval",
        "play",
        "info",
        "convert",
        "push",
        "pull",
        "doctor",
        "bench",
    ):
        assert command in out


def test_light_commands_load_neither_torch_nor_simulators() -> None:
    heavy = "torch mujoco metaworld dm_control minari h5py sklearn matplotlib"
    code = (
        "import sys; from m3dt_agent.cli import main; main(['tasks', '--json']); main(['--help']);"
        f"print(sorted(set('{heavy}'.split()) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
def test_bench_runs_the_programs_of_the_checkout(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "startup", "--quick", "--json"]) == 0
    (record,) = json.loads(capfd.readouterr().out)["records"]
    assert record["program"] == "startup"
    assert {"import torch", "m3dt --help"} <= {row["what"] for row in record["rows"]}
    assert main(["bench", "nonsense"]) == 2
    assert "unknown program nonsense" in capfd.readouterr().err


def test_bench_without_a_checkout_says_what_to_do(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[2]
    assert find_checkout(tmp_path, checkout) == checkout
    with pytest.raises(ConfigError, match=rf"no checkout of it at {tmp_path} or /nowhere; clone it, run `pip install -e"):
        find_checkout(tmp_path, Path("/nowhere"))


def test_tasks_as_json(run: Run) -> None:
    rows = json.loads(run("tasks", "--json")[1])
    assert [row["name"] for row in rows] == [task.name for task in TASKS]
    assert rows[0]["env_id"] == TASKS[0].env_id
    assert len(json.loads(run("tasks", "--set", "mt20", "--set-seed", 2, "--json")[1])) == 20
    assert len(json.loads(run("tasks", "dmcontrol", "--json")[1])) == 30


def test_an_error_is_one_line_on_stderr(run: Run) -> None:
    code, out, err = run("tasks", "walker-rnu")
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert "walker-rnu" in err
    assert "walker-run" in err


def test_debug_adds_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3DT_DEBUG", "1")
    assert "Traceback" in run("tasks", "walker-rnu")[2]


def test_wrong_usage_is_exit_code_2(run: Run) -> None:
    assert run("tasks", "--no-such-option")[0] == 2
    assert run("no-such-command")[0] == 2
    assert run("collect", "walker-run", "--episodes", "0")[0] == 2


def test_collecting_nothing_says_what_to_name(run: Run) -> None:
    code, _, err = run("collect")
    assert code == 1
    assert "--all" in err


COLLECT = [sys.executable, "-m", "m3dt_agent.cli", "collect", "--workers", "0", "--json"]


def shards_in(root: Path) -> list[Path]:
    """The finished shards of a collection; a hidden file is being written."""
    return list(root.glob(".collect/*/[!.]*.safetensors"))


def interrupted(
    command: list[str], begun: Callable[[], bool], on_sigint: signal.Handlers | Callable[..., object]
) -> tuple[str, str, subprocess.Popen[str]]:
    """Runs `command`, sends SIGINT once it has begun, and waits for its end. on_sigint: the handler of whoever starts it."""
    before = signal.signal(signal.SIGINT, on_sigint)  # a child inherits SIG_IGN, and has the default for a function
    try:
        running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not begun() and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    return *running.communicate(timeout=120), running


def test_a_command_that_was_started_with_ctrl_c_ignored_keeps_ignoring_it(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    command = [*COLLECT, "reacher-easy", "--episodes", "12", "--root", str(tmp_path)]
    out, err, running = interrupted(command, lambda: bool(shards_in(tmp_path)), signal.SIG_IGN)
    assert running.returncode == 0, err
    assert json.loads(out)[0]["episodes"] == 12


def test_ctrl_c_is_130_says_how_to_continue_and_the_rest_is_collected(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    command = [*COLLECT, "reacher-easy", "--episodes", "30", "--root", str(tmp_path)]
    out, err, running = interrupted(command, lambda: bool(shards_in(tmp_path)), signal.default_int_handler)
    assert running.returncode == 130, err
    assert out == ""
    assert "run the same command again" in err
    assert not list(tmp_path.glob("m3dt/*/*/data/main_data.hdf5"))
    assert shards_in(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["episodes"] == 30


def test_collect_data_and_train_made_what_they_say(made: Path, run: Run) -> None:
    rows = json.loads(run("data", "info", "--root", made / "datasets", "--json")[1])
    assert [(row["task"], row["source"], row["episodes"], row["steps"]) for row in rows] == [
        (name, "expert", 3, 600) for name in NAMES
    ]
    packed = json.loads(run("data", "pack", NAMES[1], "--root", made / "datasets", "--json")[1])
    assert [(row["task"], row["steps"]) for row in packed] == [(NAMES[1], 600)]
    bank = json.loads(run("info", made / "bank", "--json")[1])
    assert bank["tasks"] == NAMES
    assert set(bank["stages"].values()) == {"done"}
    assert sorted(bank["groups"].values()) == [0, 1, 2]
    assert bank["default_experts"] == "mixture"


def test_collecting_again_keeps_what_is_there(made: Path, run: Run) -> None:
    code, out, err = run("collect", *NAMES, "--root", made / "datasets", "--episodes", 3, "--workers", 0, "--json")
    assert code == 0
    assert all(row["kept"] for row in json.loads(out))
    assert "of disk" in err
    code, _, err = run("collect", NAMES[0], "--root", made / "datasets", "--episodes", 4, "--workers", 0)
    assert code == 1
    assert NAMES[0] in err


def test_mixed_levels_make_a_dataset_of_their_own(made: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("--episodes", 4, "--mixture", "random:0.25,expert:0.75", "--root", tmp_path, "--workers", 0, "--json")
    rows = json.loads(run("collect", NAMES[0], *arguments)[1])
    assert rows[0]["path"].endswith("mixed-v0")
    shutil.copytree(made / "datasets" / "m3dt" / NAMES[0] / "expert-v0", tmp_path / "m3dt" / NAMES[0] / "expert-v0")
    code, _, err = run("train", NAMES[0], "--root", tmp_path, "--bank", tmp_path / "bank", "--preset", "tiny", "--steps", 1)
    assert code == 1
    assert "expert" in err
    assert "mixed" in err
    assert not (tmp_path / "bank").exists()


def test_training_again_keeps_what_is_done(made: Path, run: Run) -> None:
    before = {path: path.read_bytes() for path in (made / "bank").glob("**/*.safetensors")}
    again = ("train", "--root", made / "datasets", "--bank", made / "bank")
    code, out, err = run(*again, "--json")
    assert code == 0
    assert err.count("kept") == 3
    assert json.loads(out)["tasks"] == NAMES
    assert {path: path.read_bytes() for path in (made / "bank").glob("**/*.safetensors")} == before
    code, _, err = run(*again, "--no-resume")
    assert code == 1
    assert "done" in err


def test_router_before_experts_is_an_error(made: Path, tmp_path: Path, run: Run) -> None:
    train = (
        "train",
        *NAMES,
        "--root",
        made / "datasets",
        "--bank",
        tmp_path / "b",
        "--preset",
        "tiny",
        "--steps",
        1,
        "--stage",
    )
    assert run(*train, "backbone")[0] == 0
    code, _, err = run(*train, 3)
    assert code == 1
    assert "experts" in err
    assert run(*train, 4)[0] == 1


def test_evaluating_a_bank_and_writing_its_episodes(made: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("--episodes", 2, "--seed", 5, "--workers", 0, "--json")
    code, out, _ = run("eval", made / "bank", NAMES[2], *arguments, "--rows", tmp_path / "rows.jsonl")
    assert code == 0
    assert list(json.loads(out)["tasks"]) == [NAMES[2]]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["task"], row["seed"]) for row in rows] == [(NAMES[2], 5), (NAMES[2], 6)]
    for workers in (0, 1):
        again = ("--workers", workers, "--deterministic", "--rows", tmp_path / f"deterministic-{workers}.jsonl")
        assert run("eval", made / "bank", NAMES[2], *arguments, *again)[0] == 0
    assert (tmp_path / "deterministic-0.jsonl").read_bytes() == (tmp_path / "deterministic-1.jsonl").read_bytes()
    assert json.loads(run("eval", made / "bank", NAMES[2], *arguments, "--experts", "none")[1])["policy"] == "m3dt-backbone"
    assert json.loads(run("eval", made / "bank", NAMES[2], *arguments, "--experts", "1")[1])["policy"] == "m3dt-expert-1"


def test_evaluating_with_few_experts_and_another_precision(made: Path, run: Run) -> None:
    arguments = ("eval", made / "bank", NAMES[2], "--episodes", 1, "--workers", 0, "--json")
    dense = json.loads(run(*arguments)[1])
    whole = json.loads(run(*arguments, "--routing-mass", 1.0)[1])
    assert whole["policy"] == "m3dt-routed"
    assert whole["mean_score"] == pytest.approx(dense["mean_score"], abs=0.5)
    few = json.loads(run(*arguments, "--max-experts", 1, "--precision", "bfloat16")[1])
    assert few["policy"] == "m3dt-routed"
    for wrong, message in (
        (("--max-experts", 1, "--experts", "none"), "go with --experts mixture; got --experts none"),
        (("--routing-mass", 1.5), "mass must be in (0, 1]; got 1.5"),
    ):
        code, _, err = run(*arguments, *wrong)
        assert code == 1
        assert message in err


def test_evaluating_behavior_policies(run: Run) -> None:
    pytest.importorskip("mujoco")
    scores = {
        level: json.loads(run("eval", level, NAMES[2], "--episodes", 2, "--workers", 0, "--json")[1])["mean_score"]
        for level in ("expert", "zero")
    }
    assert scores["expert"] > 85
    assert scores["zero"] < 20
    code, _, err = run("eval", "no-such-folder", NAMES[2])
    assert code == 1
    assert "no-such-folder" in err


def test_a_damaged_bank_is_named(made: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(made / "bank", tmp_path / "bank")
    path = tmp_path / "bank" / "experts" / "001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, out, err = run("info", tmp_path / "bank")
    assert code == 1
    assert out == ""
    assert "experts/001.safetensors" in err


def test_validate_names_episode_and_step_and_exits_1(made: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(made / "datasets" / "m3dt" / NAMES[0], tmp_path / "m3dt" / NAMES[0])
    code, out, _ = run("data", "validate", "--root", tmp_path, "--json")
    assert (code, json.loads(out)[0]["problems"]) == (0, [])
    with h5py.File(tmp_path / "m3dt" / NAMES[0] / "expert-v0" / "data" / "main_data.hdf5", "r+") as file:
        file["episode_1/observations"][7, 3] = np.nan
    code, out, _ = run("data", "validate", "--root", tmp_path, "--json")
    (problem,) = json.loads(out)[0]["problems"]
    assert code == 1
    assert "episode 1" in problem
    assert "step 7" in problem
    assert run("data", "pack", "--root", tmp_path)[0] == 1
    assert run("data", "info", "--root", tmp_path / "nowhere")[0] == 1


def test_behavior_list(run: Run) -> None:
    rows = json.loads(run("behavior", "list", "--json")[1])
    assert [row["task"] for row in rows] == [task.name for task in TASKS]
    by_name = {row["task"]: row for row in rows}
    assert by_name["reach"]["kind"] == "scripted"
    assert by_name["walker-run"]["levels"][-1] == "expert"
    assert by_name["walker-run"]["returns"]["expert"]["normalized"] == pytest.approx(58.4, abs=0.1)
    assert "walker-run" in run("behavior", "list", "walker-run")[1]


def test_doctor_measures_this_machine(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor", "--folder", tmp_path / "not" / "yet", "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0
    assert found["versions"]["torch"]
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["bf16_speed"] == pytest.approx(found["precision"]["float32"] / found["precision"]["bfloat16"])
    assert min(found["disk_free"].values()) > 0
    assert set(found["rendering"]) == {"egl", "osmesa", "glfw"}


def test_json_is_alone_on_stdout_whatever_libraries_print(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_stdout():
        print("from python")
        os.write(1, b"from c\n")
        subprocess.run(["echo", "from a child"], check=True)
    print("{}", flush=True)
    out, err = capfd.readouterr()
    assert out == "{}\n"
    assert {"from python", "from c", "from a child"} <= set(err.splitlines())


@given(st.dictionaries(st.sampled_from(["random", "novice", "expert+0.3"]), st.floats(0.01, 10), min_size=1))
def test_mixtures_are_read_as_written(shares: dict[str, float]) -> None:
    assert parse_mixture(",".join(f"{level}:{share!r}" for level, share in shares.items())) == shares


@pytest.mark.parametrize("text", ["", "expert", "expert:", "expert:a", "expert:0.5:1", "expert:0.5,expert:0.5"])
def test_mixtures_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="mixture"):
        parse_mixture(text)


def test_domain_weights_reach_the_training(made: Path, tmp_path: Path, run: Run) -> None:
    bank = tmp_path / "bank"
    train = ("train", *NAMES, "--root", made / "datasets", "--bank", bank, "--preset", "tiny", "--steps", 1, "--stage", 1)
    for wrong, reason in (("cheetah-vel:0.5", "cheetah-vel:0.5"), ("mujoco:2", "integers > 0 of metaworld")):
        code, _, err = run(*train, "--domain-weights", wrong)
        assert code == 1
        assert reason in err
    assert run(*train, "--domain-weights", "dmcontrol:3, cheetah-vel:2")[0] == 0
    assert ExpertBank.open(bank).manifest.stages["backbone"]["config"]["domain_weights"] == {"dmcontrol": 3, "cheetah-vel": 2}


def test_the_estimate_grows_with_the_work() -> None:
    assert (
        collection_estimate((get("reach"),), 100, 1) == "1 task(s), 100 episode(s) each: about 50 s and up to 18.0 MB of disk"
    )
    assert "h and" in collection_estimate(TASKS, 1000, 1)


def test_units() -> None:
    assert [size(n) for n in (512, 3_400_000, 2e9)] == ["1 kB", "3.4 MB", "2.0 GB"]


def test_gradient_conflict_is_measured_where_asked(made: Path, tmp_path: Path, run: Run) -> None:
    where = ("--root", made / "datasets", "--bank", tmp_path / "bank", "--preset", "tiny", "--stage", "backbone")
    asked = ("--steps", 4, "--threads", 1, "--conflict-every", 2, "--early-stop", "--source", "expert")
    code, _, err = run("train", *NAMES, *where, *asked)
    assert code == 0, err
    with (tmp_path / "bank" / "logs" / "backbone.csv").open() as file:
        assert [0.0 <= float(row["conflict"]) <= 2.0 for row in csv.DictReader(file)] == [True]


def test_a_missing_simulator_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "mujoco.py").write_text("raise ModuleNotFoundError(\"No module named 'mujoco'\", name='mujoco')")
    command = [sys.executable, "-m", "m3dt_agent.cli", "collect", "cheetah-vel-22", "--episodes", "1", "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*command, "--root", str(tmp_path / "d")], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "pip install 'm3dt-agent[envs]'" in done.stderr.splitlines()[-1]


def test_the_shards_of_an_array_do_all_tasks_once(run: Run, tmp_path: Path) -> None:
    names = ["cheetah-vel-20", "cheetah-vel-21", "cheetah-vel-22"]
    rows = []
    for shard in ("1/2", "2/2"):
        root, file = tmp_path / shard[0], tmp_path / f"{shard[0]}.jsonl"
        collect = ["collect", *names, "--root", str(root), "--episodes", "1", "--workers", "0", "--shard", shard, "--json"]
        assert len(json.loads(run(*collect)[1])) == 3 - int(shard[0])
        assert run("eval", "zero", *names, "--episodes", "1", "--workers", "0", "--rows", str(file), "--shard", shard)[0] == 0
        rows += read_rows(file)
    assert sorted(row.task for row in rows) == names
    code, _, err = run("collect", *names, "--root", str(tmp_path / "3"), "--shard", "2")
    assert (code, "a shard is I/N, like 1/4; got '2'" in err) == (1, True)
