"""Collection: the same data however it is run, killed or interrupted; clear refusals; nothing half-made."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import psutil
import pytest
import safetensors.numpy

from m3dt_agent import tasks
from m3dt_agent.data import collect as collect_module
from m3dt_agent.data import shards
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.data.collect_plan import make_plan
from m3dt_agent.data.episodes import read_episodes, read_metadata, validate_dataset
from m3dt_agent.data.shards import episode_seed, read_shard
from m3dt_agent.errors import ConfigError, DatasetError, M3DTError, ShapeError

FAST = tasks.resolve(["cheetah-vel-20", "ant-dir-5"])
MIXED = CollectConfig(levels={"expert+0.1": 0.5, "medium": 0.3, "random": 0.2}, episodes=7)


def contents(path):
    """Every array of every episode as bytes, and the seeds."""
    fields = ("observations", "actions", "rewards", "terminations", "truncations", "success", "demonstrator_actions")
    return [
        [episode.seed, *(None if getattr(episode, name) is None else getattr(episode, name).tobytes() for name in fields)]
        for episode in read_episodes(path)
    ]


@pytest.fixture
def policies(tmp_path, monkeypatch):
    """A module that workers can import, as a user's would be."""
    module = tmp_path / "policies_of_a_user.py"
    module.write_text(
        textwrap.dedent("""
            import os
            import numpy as np
            from m3dt_agent.data.behavior import from_callable
            
            def failing(task):
                return from_callable(task, lambda observation: 1 / 0)

            def vanishing(task):
                return from_callable(task, lambda observation: os._exit(3))

            class Narrow:
                def __init__(self, task): pass
                def reset(self, seed): pass
                def __call__(self, observation): return np.zeros(1, np.float32)

            def forward(task):
                return from_callable(task, lambda observation: np.full(task.act_dim, 0.25))
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(module.stem)
    del sys.modules[module.stem]


def test_processes_and_this_process_make_the_same_valid_datasets(tmp_path):
    ours = collect(FAST, tmp_path / "ours", MIXED, workers=0)
    theirs = collect(FAST, tmp_path / "theirs", MIXED, workers=2)
    assert [summary.task for summary in theirs] == list(FAST)
    for a, b in zip(ours, theirs, strict=True):
        assert contents(a.path) == contents(b.path)
        assert validate_dataset(b.path, b.task) == []
        assert (b.episodes, b.success_rate, b.kept) == (7, None, False)
        episodes = list(read_episodes(b.path))
        returns = [episode.episode_return for episode in episodes]
        assert b.steps == sum(episode.length for episode in episodes)
        assert b.mean_return == pytest.approx(np.mean(returns))
        assert b.mean_normalized_score == pytest.approx(np.mean([b.task.normalized_score(r) for r in returns]))
        assert [episode.seed for episode in episodes] == [episode_seed(0, b.task, i) for i in range(7)]
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == ["m3dt"]


def test_episodes_do_not_depend_on_how_many_there_are_or_on_the_other_tasks(tmp_path):
    long = collect(FAST, tmp_path / "long", CollectConfig(episodes=7), workers=0)[1]
    short = collect(FAST[1:], tmp_path / "short", CollectConfig(episodes=2), workers=0)[0]
    other = collect(FAST[1:], tmp_path / "other", CollectConfig(episodes=2, seed=1), workers=0)[0]
    assert contents(short.path) == contents(long.path)[:2]
    assert contents(other.path)[0] != contents(short.path)[0]


def test_meta_world_full_length_and_stopped_after_success(tmp_path):
    task = tasks.get("door-close")
    full = collect([task], tmp_path, CollectConfig(episodes=1), workers=0)[0]
    cut = collect([task], tmp_path, CollectConfig(episodes=1, stop_after_success=3, source="cut"), workers=0)[0]
    assert (full.steps, full.success_rate, full.mean_normalized_score) == (500, 1.0, 100.0)
    (whole,), (short,) = read_episodes(full.path), read_episodes(cut.path)
    assert short.success.sum() == 3
    assert short.length == cut.steps < 500
    assert short.terminations[-1]
    np.testing.assert_array_equal(short.observations, whole.observations[: short.length + 1])
    assert json.loads(read_metadata(full.path)["m3dt_versions"])["metaworld"] == version("metaworld")
    assert (read_metadata(full.path)["stop_after_success"], read_metadata(cut.path)["stop_after_success"]) == (0, 3)


def test_stopping_after_success_means_nothing_where_there_is_no_success(tmp_path):
    collect(FAST[:1], tmp_path, CollectConfig(episodes=1), workers=0)
    assert collect(FAST[:1], tmp_path, CollectConfig(episodes=1, stop_after_success=1), workers=0)[0].kept


def test_a_finished_dataset_is_kept_another_config_is_refused_unless_overwritten(tmp_path):
    first = collect(FAST[:1], tmp_path, CollectConfig(episodes=2), workers=0)[0]
    before = (first.path / "data" / "main_data.hdf5").stat().st_mtime_ns
    again = collect(FAST[:1], tmp_path, CollectConfig(episodes=2), workers=0)[0]
    assert again.kept
    assert (again.mean_return, again.steps) == (first.mean_return, first.steps)
    assert (first.path / "data" / "main_data.hdf5").stat().st_mtime_ns == before
    other = CollectConfig(levels={"expert": 1}, noise=0.5, episodes=3)
    with pytest.raises(DatasetError, match=r'expert-v0 exists .*"episodes": 2.*"noise": 0.0.*"episodes": 3.*"noise": 0.5'):
        collect(FAST, tmp_path, other, workers=0)
    assert not (tmp_path / "m3dt" / FAST[1].name).exists()  # refused before anything was made
    replaced = collect(FAST[:1], tmp_path, other, workers=0, overwrite=True)[0]
    assert (replaced.episodes, replaced.kept, len(contents(replaced.path))) == (3, False, 3)


def test_policies_of_ones_own(tmp_path, policies):
    config = CollectConfig(levels={"custom": 0.5, "zero": 0.5}, episodes=4, source="mine")
    summary = collect(FAST[:1], tmp_path, config, policy=policies.forward, workers=1)[0]
    assert [float(episode.actions.mean()) for episode in read_episodes(summary.path)] == [0.25, 0, 0.25, 0]
    assert "policies_of_a_user.forward" in read_metadata(summary.path)["m3dt_collect"]


@pytest.mark.parametrize(
    ("config", "policy", "error", "message"),
    [
        ({"levels": {"custom": 1}}, None, ConfigError, "policy="),
        ({}, "forward", ConfigError, "policy="),
        ({"levels": {"custom": 1}}, lambda task: None, ConfigError, "picklable"),
        ({"levels": {"novice": 1}}, None, ConfigError, "'cheetah-vel-20' has no behavior level 'novice'; it has random, zero"),
        ({"levels": {"custom": 1}}, "failing", M3DTError, r"(?s)cheetah-vel-20: .*episodes 0 to 4.*ZeroDivisionError"),
        ({"levels": {"custom": 1}}, "Narrow", ShapeError, r"(?s)cheetah-vel-20: .*\(1,\); expected \(6,\)"),
        ({"levels": {"custom": 1}}, "vanishing", M3DTError, r"cheetah-vel-20: .*worker died \(exit code 3\)"),
    ],
)
def test_what_goes_wrong_says_where(tmp_path, policies, config, policy, error, message):
    if isinstance(policy, str):
        policy = getattr(policies, policy)
    with pytest.raises(error, match=message):
        collect(FAST, tmp_path, CollectConfig(**{"episodes": 6, **config}), policy=policy, workers=1)
    assert not list(tmp_path.glob("m3dt/*/*-v0"))


def test_a_bad_shard_is_named_and_blocks_nothing_once_it_is_removed(tmp_path):
    """As an earlier version wrote them, and then failed for ever."""
    config = CollectConfig(episodes=7)
    (whole,) = collect(FAST[:1], tmp_path / "whole", config, workers=0)
    plan = make_plan(FAST[0], tmp_path / "root", config, None)
    plan.staging.mkdir(parents=True)
    tensors = safetensors.numpy.load(plan.jobs[0]().content)
    tensors["rewards"][3] = np.nan
    plan.shard(plan.jobs[0]).write_bytes(safetensors.numpy.save(tensors))
    message = r"00000-00004\.safetensors: episode 0, step 3: rewards holds NaN .*; remove this file and collect again"
    for _ in range(2):
        with pytest.raises(DatasetError, match=message):
            collect(FAST[:1], tmp_path / "root", config, workers=0)
    kept = plan.shard(plan.jobs[1]).read_bytes()  # the good one stays
    assert kept
    plan.shard(plan.jobs[0]).unlink()
    (made,) = collect(FAST[:1], tmp_path / "root", config, workers=0)
    assert contents(made.path) == contents(whole.path)


def test_two_collections_of_one_root_at_once(tmp_path):
    """Threads that begin and end at the same time: the folder of unfinished datasets comes and goes under each of them."""
    root, found = tmp_path / "root", []

    def run(task):
        try:
            for i in range(8):
                found.extend(collect([task], root, CollectConfig(levels={"zero": 1}, episodes=1, source=f"s{i}"), workers=0))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in FAST]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_environment", lambda task: gym.make(task.env_id, disable_env_checker=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not [error for error in found if isinstance(error, BaseException)], found
    assert len(finished(root)) == 16
    assert [path.name for path in root.iterdir()] == ["m3dt"]


def test_another_collection_that_finished_first_is_not_replaced(tmp_path, monkeypatch):
    """Both begin when there is nothing; they have one name and different settings."""
    mine, theirs = (CollectConfig(levels={level: 1}, episodes=1, source="one") for level in ("zero", "random"))

    def slow(plan, root, *, overwrite):
        monkeypatch.undo()
        collect(FAST[:1], tmp_path, theirs, workers=0)
        return build(plan, root, overwrite=overwrite)

    build = collect_module._build
    monkeypatch.setattr(collect_module, "_build", slow)
    with pytest.raises(DatasetError, match="one-v0 exists already"):
        collect(FAST[:1], tmp_path, mine, workers=0)
    (kept,) = collect(FAST[:1], tmp_path, theirs, workers=0)
    assert kept.kept


def test_the_same_collection_that_finished_first_is_kept(tmp_path, monkeypatch):
    config, reads = CollectConfig(levels={"zero": 1}, episodes=1), []
    is_finished = collect_module._is_finished

    def finish_first(plan, *, overwrite):
        found = is_finished(plan, overwrite=overwrite)
        if not reads:
            reads.append(found)
            collect(FAST[:1], tmp_path, config, workers=0)  # another process, between the look and the lock
        return found

    monkeypatch.setattr(collect_module, "_is_finished", finish_first)
    (made,) = collect(FAST[:1], tmp_path, config, workers=0)
    assert reads == [False]
    assert made.kept


SCRIPT = """
    import sys
    from pathlib import Path
    from m3dt_agent import tasks
    from m3dt_agent.data.collect import CollectConfig, collect

    if __name__ == "__main__":
        config = CollectConfig(levels={"expert": 0.6, "expert+0.4": 0.4}, episodes=60, stop_after_success=2)
        collect(tasks.resolve(["cheetah-vel-20", "ant-dir-5", "drawer-close"]), Path(sys.argv[1]), config, workers=2)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script above in its own process group; whatever is left of the group is killed at the end."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    started = []

    def begin(root, **options):
        process = subprocess.Popen([sys.executable, str(script), str(root)], start_new_session=True, **options)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def shards_of(root):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.glob(".collect/*/[!.]*.safetensors")}


def dataset_of(root, shard):
    """The dataset that a shard is for: .collect/m3dt.<task>.<source>-v0-<hash>/<shard>."""
    return root.joinpath(*shard.parent.name.rpartition("-")[0].split("."))


def finished(root):
    return sorted(root.glob("m3dt/*/*-v0"))


def made(root, count):
    """Whether `count` of the 36 shards were made, those of finished datasets included."""
    return len(shards_of(root)) + 12 * len(finished(root)) >= count


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_episodes_and_repeats_no_shard(tmp_path, start):
    root = tmp_path / "killed"
    for count in (1, 9, 18):
        seen = shards_of(root)
        process = start(root)
        wait_for(functools.partial(made, root, count))
        orphans = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # the parent alone: its workers must notice
        process.wait()
        psutil.wait_procs(orphans, timeout=20)
        assert not [orphan for orphan in orphans if orphan.is_running()]
        kept = shards_of(root)
        assert {path: kept[path] for path in seen if path in kept} == {path: seen[path] for path in seen if path in kept}
        assert all(path in kept or dataset_of(root, path).exists() for path in seen)  # gone only after their dataset is there
    assert len(finished(root)) < 3  # the last kill was in the middle
    assert start(root).wait(120) == 0
    assert start(tmp_path / "whole").wait(120) == 0
    assert len(finished(tmp_path / "whole")) == 3
    for path in finished(tmp_path / "whole"):
        assert contents(path) == contents(root / path.relative_to(tmp_path / "whole"))


def test_ctrl_c_stops_every_worker_and_leaves_whole_shards(tmp_path, start):
    root = tmp_path / "interrupted"
    process = start(root, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(shards_of(root)) >= 3)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, stderr = process.communicate(timeout=20)
    assert process.returncode != 0
    assert stderr.count("KeyboardInterrupt") == 1  # the parent's own; workers are silent
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]
    assert [len(list(read_shard(path))) for path in shards_of(root)] == [5] * len(shards_of(root))
    assert not list(root.glob(".collect/*/.writing-*"))


def test_two_processes_cannot_make_one_dataset(tmp_path, start):
    root = tmp_path / "root"
    first = start(root)
    wait_for(lambda: bool(shards_of(root)))
    second = start(root, stderr=subprocess.PIPE, text=True)
    assert "another process is collecting into" in second.communicate(timeout=30)[1]
    assert first.poll() is None


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    script = tmp_path / "full.py"
    script.write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # every file: 4 KiB\n"
        + textwrap.dedent(SCRIPT)
    )
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "root")], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode != 0
    assert "m3dt_agent.errors.DiskSpaceError: " in done.stderr
    assert ".safetensors" in done.stderr
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


def actions_of(policy, episode):
    policy.reset(episode.seed)
    return np.stack([policy(observation) for observation in episode.observations[:-1]])


def test_noisy_episodes_keep_what_the_demonstrator_itself_would_have_done(tmp_path):
    task = FAST[0]
    levels = {"expert+0.3": 0.5, "random": 0.5}
    made = collect([task], tmp_path, CollectConfig(levels, episodes=2), workers=0)[0]
    noisy, drawn = read_episodes(made.path)
    np.testing.assert_array_equal(noisy.demonstrator_actions, actions_of(behavior_policy(task, "expert"), noisy))
    assert np.abs(noisy.demonstrator_actions - noisy.actions).mean() > 0.1
    np.testing.assert_array_equal(drawn.demonstrator_actions, drawn.actions)  # nobody else would have acted there
    assert read_metadata(made.path)["m3dt_labelled"] is True
    assert validate_dataset(made.path, task) == []
    clean = collect([task], tmp_path, CollectConfig(episodes=1, source="clean"), workers=0)[0]
    assert next(iter(read_episodes(clean.path))).demonstrator_actions is None
    assert "m3dt_labelled" not in read_metadata(clean.path)


def test_another_policy_acts_and_a_level_says_what_it_would_have_done(tmp_path):
    """One round of dataset aggregation; the actor is told what it earned."""
    task, earned = FAST[0], []

    class Actor:
        def __init__(self, task): ...
        def reset(self, seed):
            earned.append([])

        def rewarded(self, reward):
            earned[-1].append(reward)

        def __call__(self, observation):
            return np.full(task.act_dim, 0.25, np.float32)

    config = CollectConfig({"custom": 1.0}, episodes=2, label_with="expert")
    made = collect([task], tmp_path, config, policy=Actor, workers=0)[0]
    for episode, rewards in zip(read_episodes(made.path), earned, strict=True):
        assert (episode.actions == np.float32(0.25)).all()
        np.testing.assert_array_equal(episode.demonstrator_actions, actions_of(behavior_policy(task), episode))
        np.testing.assert_array_equal(episode.rewards, np.array(rewards, np.float32))
    assert read_metadata(made.path)["m3dt_label_with"] == "expert"
    with pytest.raises(DatasetError, match=r"was made from .*label_with.*; asked for was"):
        collect([task], tmp_path, dataclasses.replace(config, label_with=None), policy=Actor, workers=0)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("expert+0.1", r"label_with must be a level without noise; got 'expert\+0.1'"),
        ("random", "'cheetah-vel-20' cannot be labelled with 'random'; it has zero, medium, expert"),
        ("planner", "cannot be labelled with 'planner'"),
    ],
)
def test_levels_that_label_nothing(level, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        collect(FAST[:1], tmp_path, CollectConfig(label_with=level), workers=0)
