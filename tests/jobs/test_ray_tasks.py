"""A real Ray cluster of three nodes on this machine gives what local processes give, also while its workers are killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from job_examples import Square, attempts
from typer.testing import CliRunner

from m3dt_agent import tasks
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import EvalConfig, ModelConfig, train_preset
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.episodes import read_episodes
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, M3DTError, MissingDependencyError
from m3dt_agent.evaluation import evaluate
from m3dt_agent.evaluation.parallel import evaluate_in_jobs
from m3dt_agent.jobs import LocalProcesses, RayCluster, run_jobs
from m3dt_agent.training import Fanout

pytest.importorskip("ray")

TASKS = tasks.resolve(["cheetah-vel-3", "cheetah-vel-30", "ant-dir-7", "ant-dir-20", "cheetah-vel-12"])
MODEL = ModelConfig(16, 2, 2, n_experts=5, context_length=4, prompt_length=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Three nodes of one CPU each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()  # this process's threads first: they must not outlive the cluster, nor the interpreter
    nodes.shutdown()


@pytest.fixture
def engine(cluster) -> RayCluster:
    return RayCluster(cluster.address)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TaskDatasets:
    root = tmp_path_factory.mktemp("data")
    collect(TASKS, root, CollectConfig(episodes=6), workers=0)
    return TaskDatasets.open(root, TASKS)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, data) -> Path:
    """A bank whose backbone is trained."""
    path = tmp_path_factory.mktemp("bank") / "backbone"
    M3DTAgent(MODEL, TASKS).fit_stage("backbone", data, bank=path, config=train_preset("tiny", "backbone", steps=20, threads=1))
    return path


@pytest.fixture
def train(backbone, data, tmp_path) -> Callable[..., ExpertBank]:
    """Trains the experts of a copy of the bank, in this process or as `fanout` says."""

    def fit(name: str, fanout: Fanout | None = None, steps: int = 40) -> ExpertBank:
        path = tmp_path / name
        if not path.exists():
            ExpertBank.open(backbone).copy_to(path)
        settings = {"steps": steps, "experts_at_once": 2, "threads": 1, "checkpoint_every": 10, "log_every": 10}
        config = train_preset("tiny", "experts", **settings)
        M3DTAgent.load(path).fit_stage("experts", data, bank=path, config=config, fanout=fanout, progress=False)
        return ExpertBank.open(path)

    return fit


def contents(path: Path) -> list[object]:
    return [
        (e.seed, e.observations.tobytes(), e.actions.tobytes(), e.rewards.tobytes(), e.terminations.tobytes())
        for e in read_episodes(path)
    ]


def test_jobs(tmp_path, engine):
    jobs = [Square(i, tmp_path) for i in range(6)]
    assert sorted(run_jobs(jobs, engine)) == [(i, i * i) for i in range(6)]
    jobs = [Square(7, tmp_path, "foreign", times=1), Square(8, tmp_path, "death", times=1)]
    assert sorted(run_jobs(jobs, engine)) == [(0, 49), (1, 64)]
    assert [attempts(tmp_path, i) for i in (7, 8)] == [2, 2]


@pytest.mark.parametrize(
    ("trouble", "error", "message", "tries"),
    [
        pytest.param("error", ConfigError, "^square of 1: no such square$", 1, marks=pytest.mark.slow),
        pytest.param(
            "foreign",
            M3DTError,
            "(?s)^square of 1 failed:.*in __call__.*ZeroDivisionError: squares of zero",
            3,
            marks=pytest.mark.slow,
        ),
        ("death", M3DTError, "^square of 1: the worker died", 3),
    ],
)
def test_a_job_that_always_fails_is_named_and_what_was_done_is_kept(tmp_path, cluster, trouble, error, message, tries):
    done = []
    with pytest.raises(error, match=message):
        done.extend(run_jobs([Square(0, tmp_path), Square(1, tmp_path, trouble)], RayCluster(cluster.address, retries=2)))
    assert done == [(0, 0)] or tries == 1  # which of two jobs ends first is Ray's to decide
    assert attempts(tmp_path, 1) == tries


def test_a_job_that_no_node_can_import_is_named_and_not_retried(tmp_path, engine, monkeypatch):
    module = types.ModuleType("only_here")
    exec("from job_examples import Square\nclass Mine(Square): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(ConfigError, match=r"^square of 0: a node cannot load the job: .*only_here'; put the class.* import$"):
        list(run_jobs([module.Mine(0, tmp_path)], engine))


@pytest.mark.slow
def test_the_experts_stage_is_that_of_one_process_bit_for_bit(train, engine):
    one = train("one process")
    for fanout in (Fanout(engine), Fanout(LocalProcesses(2))):
        bank = train(type(fanout.engine).__name__, fanout)
        assert bank.manifest == one.manifest  # with the hashes of all files
        assert not list((bank.path / "resume" / "jobs").iterdir())
        curves = [sorted(row.rsplit(",", 1)[0] for row in (b.path / "logs/experts.csv").open()) for b in (bank, one)]
        assert curves[0] == curves[1]
        assert len(curves[0]) == 1 + 5 * 4


@pytest.mark.slow
def test_an_array_of_processes_shares_the_experts_stage(train):
    one, engine = train("one process"), LocalProcesses(0)
    first = train("array", Fanout(engine, shard=(1, 2)))
    assert first.finished_experts == (0, 1, 4)
    assert train("array", Fanout(engine, shard=(2, 2))).manifest == one.manifest


@pytest.mark.slow
def test_evaluation_gives_the_same_rows(train, engine):
    bank, config = train("bank"), EvalConfig(2, 10_000, slots=4, deterministic=True, workers=0)
    here = evaluate(M3DTAgent.load(bank.path), TASKS, config)
    assert evaluate_in_jobs(bank, TASKS, config, engine) == here
    assert evaluate_in_jobs("random", TASKS, config, engine) == evaluate("random", TASKS, config)


def test_no_cluster_and_no_ray(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"no Ray cluster at '127\.0\.0\.1:1'.*--ray local"):
        list(run_jobs([Square(0, tmp_path)], RayCluster("127.0.0.1:1")))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'm3dt-agent\[ray\]'"):
        list(run_jobs([Square(0, tmp_path)], RayCluster()))


@pytest.mark.parametrize(
    "arguments",
    [
        ["collect", "cheetah-vel-3", "--root", "ROOT"],
        ["eval", "random", "cheetah-vel-3"],
        ["train", "cheetah-vel-3", "--root", "ROOT", "--bank", "ROOT/bank"],
    ],
)
def test_commands_say_how_to_install_ray(tmp_path, monkeypatch, arguments):
    from m3dt_agent.cli import main

    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*(a.replace("ROOT", str(tmp_path)) for a in arguments), "--ray", "auto"]) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_twelve_tasks_collected_episode_for_episode(tmp_path, engine):
    names = ["cheetah-vel-0", "cheetah-vel-39", "ant-dir-1", "ant-dir-39", "reach", "drawer-close", "button-press", "door-lock"]
    twelve = tasks.resolve([*names, "walker-walk", "cartpole-swingup", "reacher-easy", "cup-catch"])
    config = CollectConfig(levels={"expert+0.1": 0.7, "random": 0.3}, episodes=11)
    here = collect(twelve, tmp_path / "here", config, workers=2)
    there = collect(twelve, tmp_path / "there", config, engine=engine)
    assert len(there) == 12
    for a, b in zip(here, there, strict=True):
        assert contents(a.path) == contents(b.path)


def ray_workers() -> list[psutil.Process]:
    """The processes that run jobs now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("ray::") and process.name()[5].islower():  # not ray::IDLE, ray::DashboardAgent, …
                found.append(process)
    return found


@pytest.mark.slow
def test_ten_kills_and_a_node_lost(train, cluster, data, tmp_path):
    engine = RayCluster(cluster.address, retries=20)
    one = train("one process", steps=3000)
    lost = cluster.add_node(num_cpus=1)
    ended, randomness, kills = threading.Event(), random.Random(0), []

    def kill() -> None:
        while not ended.wait(randomness.uniform(0.5, 2.0)) and len(kills) < 10:
            with contextlib.suppress(psutil.Error, IndexError):
                victim = randomness.choice(ray_workers())
                victim.send_signal(signal.SIGKILL)
                kills.append(victim.pid)
                if len(kills) == 5:
                    cluster.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        bank = train("killed", Fanout(engine, experts_per_job=2), steps=3000)
        config = EvalConfig(3, 10_000, slots=4, deterministic=True, workers=0)
        rows = evaluate_in_jobs(bank, TASKS, config, engine)
        collections = 0
        while collections == 0 or len(kills) < 10:  # the rest while it collects
            collect(TASKS, tmp_path / f"collected-{collections}", CollectConfig(episodes=20), engine=engine)
            collections += 1
    finally:
        ended.set()
        killer.join()
    assert len(kills) == 10
    assert bank.manifest == one.manifest
    assert rows == evaluate(M3DTAgent.load(one.path), TASKS, config)
    for summary in collect(TASKS, tmp_path / "whole", CollectConfig(episodes=20), workers=2):
        killed = sorted(tmp_path.glob(f"collected-*/{summary.path.relative_to(tmp_path / 'whole')}"))
        assert len(killed) == collections
        assert all(contents(path) == contents(summary.path) for path in killed)


@pytest.mark.slow
def test_a_driver_killed_continues_with_what_came_back(train, cluster, backbone, data, tmp_path):
    one = train("one process", steps=1500)
    path = tmp_path / "killed"
    ExpertBank.open(backbone).copy_to(path)
    script = f"""
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import train_preset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.jobs import RayCluster
from m3dt_agent.training import Fanout
settings = dict(steps=1500, experts_at_once=2, threads=1, checkpoint_every=10, log_every=10)
data = TaskDatasets.open({str(data.reopen.args[0])!r}, {[task.name for task in TASKS]!r})
M3DTAgent.load({str(path)!r}).fit_stage("experts", data, bank={str(path)!r}, config=train_preset("tiny", "experts", **settings),
    fanout=Fanout(RayCluster({cluster.address!r})), progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    jobs = path / "resume" / "jobs"
    deadline = time.monotonic() + 120
    while not list(jobs.glob("*/resume/experts-*-100*")) and not list(path.glob("experts/*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert train("killed", Fanout(RayCluster(cluster.address)), steps=1500).manifest == one.manifest


@pytest.mark.slow
def test_all_three_stages_on_a_cluster(tmp_path, cluster, data, capsys):
    from m3dt_agent.cli import main

    root, names = str(data.reopen.args[0]), [task.name for task in TASKS]
    sizes = ["--preset", "tiny", "--experts", "3", "--steps", "12", "--experts-at-once", "1", "--threads", "1"]
    where = ["--ray", cluster.address, "--data-parallel", "1:2"]
    arguments = ["train", *names, "--root", root, "--bank", str(tmp_path / "bank"), *sizes, *where, "--json"]
    assert main(arguments) == 0
    bank = ExpertBank.open(tmp_path / "bank")
    assert [bank.status(stage) for stage in ("backbone", "experts", "router")] == ["done"] * 3
    assert main(["eval", str(bank.path), "--episodes", "1", "--slots", "2", "--ray", cluster.address, "--json"]) == 0
    assert '"episodes": 5' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "1/2"], "--shard goes with --stage experts; got --stage all"),
        (["--stage", "experts", "--shard", "3/2"], "needs 1 <= I <= N; got 3/2"),
        (["--data-parallel", "2"], "--data-parallel 2 goes with --ray"),
        (["--ray", "auto", "--data-parallel", "8:2"], "the fewest and the most, like 2:8; got '8:2'"),
        (["--ray", "auto", "--cpus-per-job", "0"], "cpus_per_job must be >= 1"),
    ],
)
def test_options_that_cannot_be_are_refused(backbone, data, capsys, arguments, message):
    from m3dt_agent.cli import main

    assert main(["train", "--root", str(data.reopen.args[0]), "--bank", str(backbone), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_help_names_the_engines() -> None:
    from m3dt_agent.cli import app

    for command in ("collect", "eval", "train"):
        text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert "--ray" in text
        assert "--shard" in text
