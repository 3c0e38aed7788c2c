"""The bank on disk: round trips, verification, and commits that a kill either makes or does not."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from m3dt_agent import tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.bank.tensor_files import FileRecord, read_tensors, write_tensors
from m3dt_agent.config import DataConfig, ModelConfig
from m3dt_agent.data.prompts import Prompt
from m3dt_agent.data.stats import TaskStatistics
from m3dt_agent.errors import BankError, ConfigError, DiskSpaceError, StageError, UnknownTaskError
from m3dt_agent.model import M3DT, empty

CONFIG = ModelConfig(16, 2, 2, n_experts=2, context_length=4, prompt_length=2)
TASKS = ("walker-run", "reach")


def statistics(name: str) -> TaskStatistics:
    dim = tasks.get(name).obs_dim
    return TaskStatistics(np.arange(dim, dtype=np.float32), np.full(dim, 2, np.float32), 1000.0, 812.5, 10.0)


def prompt(name: str) -> Prompt:
    task = tasks.get(name)
    states, actions = np.ones((2, task.obs_dim), np.float32), np.zeros((2, task.act_dim), np.float32)
    return Prompt(states, actions, np.array([2.0, 1.0], np.float32), np.array([498, 499]))


def new_bank(path: Path, config: ModelConfig = CONFIG) -> ExpertBank:
    specs = [tasks.get(name) for name in TASKS]
    prompts = {name: (prompt(name),) for name in TASKS}
    return ExpertBank.create(path, config, specs, {name: statistics(name) for name in TASKS}, prompts, DataConfig())


def random_model(seed: int = 0) -> M3DT:
    torch.manual_seed(seed)
    model = M3DT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def parts(model: M3DT) -> dict[str, dict[str, torch.Tensor]]:
    experts = {f"experts/{e:03d}.safetensors": model.expert_slice(e) for e in range(CONFIG.n_experts)}
    backbone, router = model.backbone_tensors(), model.router_tensors()
    return {"backbone.safetensors": dict(backbone), **experts, "router.safetensors": dict(router)}


@pytest.fixture
def full_bank(tmp_path: Path) -> ExpertBank:
    bank = new_bank(tmp_path / "bank")
    bank.commit(parts(random_model()), groups={"walker-run": 0, "reach": 1})
    return bank


def test_a_new_bank_opens_as_it_was_made(tmp_path: Path) -> None:
    new_bank(tmp_path / "bank")
    bank = ExpertBank.open(tmp_path / "bank")
    assert bank.config == CONFIG
    assert bank.data_config == DataConfig()
    assert tuple(task.name for task in bank.tasks) == TASKS
    assert bank.groups is None
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["absent"] * 3
    assert bank.default_experts == "none"
    assert list(bank.statistics) == list(bank.prompts) == list(TASKS)
    assert bank.statistics["reach"].target_return == 812.5
    np.testing.assert_array_equal(bank.statistics["reach"].mean, statistics("reach").mean)
    np.testing.assert_array_equal(bank.prompts["walker-run"][0].timesteps, [498, 499])


def test_banks_from_before_a_model_field_keep_their_manifest_and_hash(tmp_path: Path) -> None:
    """Both were written down before `ffn_multiple` came."""
    files = {f"{name}.safetensors": FileRecord("0" * 64, 8) for name in ("statistics", "prompts")}
    manifest = Manifest(CONFIG, DataConfig(), TASKS, files=files)
    bank = ExpertBank(tmp_path, manifest)
    assert bank.content_hash == "459bd62ea66dc71717fbcf335652aaa5da003f893f8a2c13a15a91b3d292f630"
    text = manifest.to_json()
    fields = ["embed_dim", "n_layers", "n_heads", "n_experts", "context_length", "prompt_length", "max_timesteps"]
    fields += ["state_dim", "act_dim", "dropout", "residual", "top_k"]
    assert list(json.loads(text)["model"]) == fields
    assert Manifest.from_json(text, tmp_path) == manifest
    wide = dataclasses.replace(manifest, model=dataclasses.replace(CONFIG, ffn_multiple=12))
    assert ExpertBank(tmp_path, wide).content_hash != bank.content_hash
    assert Manifest.from_json(wide.to_json(), tmp_path) == wide


def test_a_wide_model_comes_back_from_its_bank(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, n_experts=0, ffn_multiple=12)
    model = M3DT(config)
    new_bank(tmp_path / "bank", config).commit({"backbone.safetensors": model.backbone_tensors()})
    found = ExpertBank.open(tmp_path / "bank").model()
    assert found.config == config
    assert found.backbone_tensors()["blocks.0.ffn.w_out.weight"].shape == (16, 12 * 16)
    for name, tensor in model.backbone_tensors().items():
        assert torch.equal(found.backbone_tensors()[name], tensor), name


def test_the_model_is_built_as_far_as_training_has_come(tmp_path: Path) -> None:
    model, bank = random_model(), new_bank(tmp_path / "bank")
    files = parts(model)
    with pytest.raises(StageError, match="no backbone yet"):
        bank.model()
    bank.commit({"backbone.safetensors": files["backbone.safetensors"]})
    assert bank.model().config.n_experts == 0
    assert (bank.status("backbone"), bank.status("experts")) == ("done", "absent")
    bank.commit({"experts/001.safetensors": files["experts/001.safetensors"]})
    assert (bank.status("experts"), bank.finished_experts, bank.default_experts) == ("partial", (1,), "none")
    partial = bank.model()
    torch.testing.assert_close(partial.expert_slice(1), model.expert_slice(1), rtol=0, atol=0)
    assert not partial.expert_slice(0)["blocks.0.experts.w_out"].any()
    bank.commit({name: files[name] for name in ("experts/000.safetensors", "router.safetensors")})
    assert (bank.status("experts"), bank.status("router"), bank.default_experts) == ("done", "done", "mixture")
    torch.testing.assert_close(dict(ExpertBank.open(bank.path).model().state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_every_weight_of_a_whole_bank_comes_from_its_files(full_bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole banks are loaded into memory that nobody initialised; here it holds NaN instead of whatever was there."""
    empty_like, asked = empty._empty_like, []

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        return empty_like(tensor).fill_(torch.nan)

    monkeypatch.setattr(empty, "_empty_like", poisoned)
    torch.manual_seed(5)
    found, expected = full_bank.model(), random_model()
    assert len(asked) == len(dict(found.named_parameters())) == len(found.state_dict())
    assert not list(found.buffers()), "an empty model's buffers would be empty too: empty_model has to make them"
    assert not any(parameter.is_meta for parameter in found.parameters())
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    for name, parameter in expected.named_parameters():
        assert found.get_parameter(name).stride() == parameter.stride(), name
        assert found.get_parameter(name).data_ptr() % 64 == 0, name


def test_a_bank_opened_by_its_sizes_is_verified_when_it_is_read(full_bank: ExpertBank, tmp_path: Path) -> None:
    for name in full_bank.manifest.files:
        file = full_bank.path / name
        kept = file.read_bytes()
        flip_bit(file)
        bank = ExpertBank.open(full_bank.path, check="sizes")
        uses: list[Callable[[], object]] = [lambda bank=bank, name=name: bank.read(name), bank.refresh]
        uses.append(lambda bank=bank: (bank.model(), bank.statistics, bank.prompts))
        uses.append(lambda bank=bank: bank.copy_to(tmp_path / "copy"))
        for use in uses:
            with pytest.raises(BankError, match=f"{name} is damaged or foreign"):
                use()
        for damage in (truncate, remove):
            damage(file)
            with pytest.raises(BankError, match=f"{name} is (missing|damaged or foreign)"):
                ExpertBank.open(full_bank.path, check="sizes")
        file.write_bytes(kept)
    whole = ExpertBank.open(full_bank.path, check="sizes")
    assert whole.content_hash == full_bank.content_hash
    torch.testing.assert_close(dict(whole.model().state_dict()), dict(random_model().state_dict()), rtol=0, atol=0)


def test_some_experts_alone(full_bank: ExpertBank, tmp_path: Path) -> None:
    (full_bank.path / "experts/000.safetensors").rename(tmp_path / "away")
    bank = ExpertBank.open(full_bank.path, experts=[1])
    assert bank.finished_experts == (1,)
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["done", "partial", "absent"]
    assert bank.default_experts == "none"
    bank.refresh()
    assert bank.finished_experts == (1,)
    assert bank.copy_to(tmp_path / "copy").finished_experts == (1,)
    with pytest.raises(BankError, match=r"experts/000\.safetensors is missing"):
        ExpertBank.open(full_bank.path)
    with pytest.raises(ConfigError, match=r"no experts \[5\] in the bank; it has \[0, 1\]"):
        ExpertBank.open(full_bank.path, experts=[1, 5])
    (tmp_path / "away").rename(full_bank.path / "experts/000.safetensors")
    assert ExpertBank.open(full_bank.path, experts=[0, 1]).default_experts == "mixture"


def test_a_held_bank_does_not_change(full_bank: ExpertBank) -> None:
    other = ExpertBank.open(full_bank.path)
    writer = threading.Thread(target=other.commit, args=({"router.safetensors": parts(random_model(1))["router.safetensors"]},))
    with full_bank.held():
        before = full_bank.read("router.safetensors")
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        torch.testing.assert_close(full_bank.read("router.safetensors"), before, rtol=0, atol=0)
    writer.join(20)
    assert full_bank.manifest != ExpertBank.open(full_bank.path).manifest
    with full_bank.held():
        assert full_bank.manifest == ExpertBank.open(full_bank.path).manifest


def test_loaded_tensors_do_not_follow_the_file(full_bank: ExpertBank) -> None:
    before = full_bank.read("router.safetensors")
    kept = {name: tensor.clone() for name, tensor in before.items()}
    full_bank.commit({"router.safetensors": parts(random_model(1))["router.safetensors"]})
    torch.testing.assert_close(before, kept, rtol=0, atol=0)
    assert full_bank.content_hash != new_bank(full_bank.path.parent / "other").content_hash


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def remove(path: Path) -> None:
    path.unlink()


def swap_for_another_banks(path: Path) -> None:
    other = new_bank(path.parent / "foreign")
    other.commit(parts(random_model(7)))
    shutil.copy(other.path / "backbone.safetensors", path)


@pytest.mark.parametrize("damage", [flip_bit, truncate, remove, swap_for_another_banks])
def test_a_damaged_file_is_named(full_bank: ExpertBank, damage: Callable[[Path], None]) -> None:
    damage(full_bank.path / "backbone.safetensors")
    for use in (lambda: ExpertBank.open(full_bank.path), full_bank.model, lambda: full_bank.copy_to(full_bank.path / "copy")):
        with pytest.raises(BankError, match=r"backbone\.safetensors is (missing|damaged or foreign)"):
            use()
    assert not (full_bank.path / "copy").exists()


def test_every_file_is_verified_on_open(full_bank: ExpertBank) -> None:
    for name in full_bank.manifest.files:
        kept = (full_bank.path / name).read_bytes()
        flip_bit(full_bank.path / name)
        with pytest.raises(BankError, match=name):
            ExpertBank.open(full_bank.path)
        (full_bank.path / name).write_bytes(kept)
    ExpertBank.open(full_bank.path)


def test_a_file_nobody_knows_is_refused(full_bank: ExpertBank) -> None:
    shutil.copy(full_bank.path / "experts/000.safetensors", full_bank.path / "experts/007.safetensors")
    with pytest.raises(BankError, match=r"holds experts/007\.safetensors, which its bank\.json does not list"):
        ExpertBank.open(full_bank.path)


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: manifest | changes


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (edited(format="other"), "not an m3dt-bank"),
        (edited(format_version=3), "format version 3; this version of m3dt-agent reads 1 and 2"),
        (edited(tasks=["walker-fly"]), "walker-fly"),
        (edited(model={"embed_dim": 16}), "n_layers"),
        (edited(files={"../outside.safetensors": {"sha256": "", "bytes": 0}}), r"\.\./outside\.safetensors"),
        (edited(files={}), r"does not list statistics\.safetensors"),
        (edited(groups={"walker-run": 0, "reach": 5}), r"experts 0 … 1; got \{'reach': 5\}"),
        (edited(stages={"fourth": {}}), "fourth"),
        (edited(unheard_of=1), "unheard_of"),
        (lambda manifest: [manifest], "damaged or foreign"),
    ],
)
def test_a_foreign_manifest_is_refused(full_bank: ExpertBank, edit: Callable[[Any], Any], told: str) -> None:
    path = full_bank.path / "bank.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(BankError, match=told):
        ExpertBank.open(full_bank.path)


def test_no_bank_and_two_banks(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"no bank at .*bank\.json is missing"):
        ExpertBank.open(tmp_path / "nowhere")
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise/bank.json").write_bytes(b"\xff\x00{")
    with pytest.raises(BankError, match="damaged or foreign"):
        ExpertBank.open(tmp_path / "noise")
    new_bank(tmp_path / "bank")
    with pytest.raises(BankError, match="there already is a bank"):
        new_bank(tmp_path / "bank")


def test_statistics_of_other_tasks_are_refused(tmp_path: Path) -> None:
    specs = [tasks.get(name) for name in TASKS]
    with pytest.raises(ConfigError, match="reach"):
        ExpertBank.create(tmp_path / "bank", CONFIG, specs, {"walker-run": statistics("walker-run")}, {}, DataConfig())


def test_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    bank = new_bank(tmp_path / "bank", dataclasses.replace(CONFIG, embed_dim=32))
    bank.commit({"backbone.safetensors": parts(random_model())["backbone.safetensors"]})
    with pytest.raises(BankError, match=r"backbone\.safetensors does not fit this bank's model"):
        bank.model()


@pytest.mark.parametrize("groups", [{"walker-run": 0}, {"walker-run": 0, "reach": 0}, {"walker-run": 0, "reach": 2}])
def test_groups_must_cover_tasks_and_experts(tmp_path: Path, groups: dict[str, int]) -> None:
    bank = new_bank(tmp_path / "bank")
    with pytest.raises(ConfigError):
        bank.commit({}, groups=groups)
    assert ExpertBank.open(bank.path).groups is None


def in_child(action: Callable[[], object]) -> int:
    """Wait status of a forked child; files only, no training, so that forking is safe."""
    if (child := os.fork()) == 0:
        try:
            action()
        finally:
            os._exit(3)
    return os.waitpid(child, 0)[1]


def test_a_commit_killed_anywhere_is_made_or_not(full_bank: ExpertBank, tmp_path: Path) -> None:
    """SIGKILL before the n-th flush or rename, for every n: the bank opens as it was or as it was to become, and can commit."""
    old, new = parts(random_model()), parts(random_model(1))
    seen = set()
    for n in range(100):
        path = tmp_path / f"killed {n}"
        shutil.copytree(full_bank.path, path)
        status = in_child(lambda path=path, n=n: killed_commit(path, new, n))
        bank = ExpertBank.open(path)
        expected = (
            new
            if torch.equal(*(files["router.safetensors"]["blocks.0.router.layers.0.bias"] for files in (new, old)))
            else None
        )
        assert expected is None
        changed = [not equal(bank.read(name), old[name]) for name in old]
        assert all(changed) or not any(changed), f"half a commit after a kill before operation {n}"
        assert changed[0] == (bank.groups == {"walker-run": 1, "reach": 0})
        seen.add(changed[0])
        bank.commit(new)
        assert not list(path.rglob("*.next*"))
        if os.WIFEXITED(status):
            break
    assert seen == {False, True}
    assert n > 10


def killed_commit(path: Path, files: dict[str, dict[str, torch.Tensor]], n: int) -> None:
    done = [0]

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any) -> Any:
            done[0] += 1
            if done[0] > n:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        return patched

    os.replace, os.fsync = before(os.replace), before(os.fsync)
    ExpertBank.open(path).commit(files, groups={"walker-run": 1, "reach": 0})


def test_an_interrupted_commit_is_finished_by_the_next(full_bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    new, replace, done = parts(random_model(1)), os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            full_bank.commit(new)
    full_bank.commit({}, groups={"walker-run": 1, "reach": 0})
    bank = ExpertBank.open(full_bank.path)
    assert bank.groups == {"walker-run": 1, "reach": 0}
    assert all(equal(bank.read(name), new[name]) for name in new)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_full_disk_leaves_the_bank_as_it_was(full_bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ExpertBank.open(full_bank.path).content_hash

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskSpaceError, match=r"backbone\.safetensors\.next"):
            full_bank.commit(parts(random_model(1)))
    assert not list(full_bank.path.rglob("*.next*"))
    assert ExpertBank.open(full_bank.path).content_hash == before == full_bank.content_hash


def test_a_file_too_large_is_a_full_disk(tmp_path: Path) -> None:
    """The real thing, with the operating system refusing the write."""
    kept, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, kept[1]))
    try:
        with pytest.raises(DiskSpaceError, match="large"):
            write_tensors(tmp_path / "large", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "large").exists()


def test_readers_of_a_bank_being_committed_see_whole_banks(full_bank: ExpertBank) -> None:
    stop = threading.Event()
    models = [parts(random_model(seed)) for seed in (2, 3)]

    def write() -> None:
        for i in range(6):
            full_bank.commit(models[i % 2])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    hashes = set()
    while not stop.is_set():
        hashes.add(ExpertBank.open(full_bank.path).content_hash)
    writer.join()
    hashes.add(full_bank.content_hash)
    assert len(hashes) <= 3


def test_a_copy_holds_the_public_files_and_nothing_else(full_bank: ExpertBank, tmp_path: Path) -> None:
    (full_bank.path / "resume").mkdir()
    copy = full_bank.copy_to(tmp_path / "copies" / "one")
    assert copy.content_hash == full_bank.content_hash
    found = {str(file.relative_to(copy.path)) for file in copy.path.rglob("*") if file.is_file()}
    assert found == {"bank.json", *full_bank.manifest.files}
    with pytest.raises(BankError, match="not an empty folder"):
        full_bank.copy_to(tmp_path / "copies" / "one")


def test_a_bank_for_some_of_the_tasks_has_all_but_the_router(full_bank: ExpertBank, tmp_path: Path) -> None:
    names = list(full_bank.manifest.tasks)[::-1][:2]
    part = full_bank.for_tasks(tmp_path / "part", names)
    assert part.manifest.tasks == tuple(names)
    assert part.groups == {name: full_bank.groups[name] for name in names}  # type: ignore[index]
    assert (part.status("experts"), part.status("router")) == ("done", "absent")
    for name in ("backbone.safetensors", "experts/001.safetensors"):
        assert part.manifest.files[name].sha256 == full_bank.manifest.files[name].sha256
    for name in names:
        np.testing.assert_array_equal(part.statistics[name].mean, full_bank.statistics[name].mean)
        np.testing.assert_array_equal(part.prompts[name][0].states, full_bank.prompts[name][0].states)
    with pytest.raises(BankError, match="not an empty folder"):
        full_bank.for_tasks(tmp_path / "part", names)
    with pytest.raises(UnknownTaskError, match="unknown task of this bank 'fish-swim'"):
        full_bank.for_tasks(tmp_path / "other", ["fish-swim"])
    with pytest.raises(StageError, match="lacks its backbone or some experts"):
        ExpertBank.open(full_bank.path, experts=[0]).for_tasks(tmp_path / "other", names)
    assert not (tmp_path / "other").exists()


def test_a_bank_for_one_task_keeps_the_experts_of_the_others(full_bank: ExpertBank, tmp_path: Path) -> None:
    name = full_bank.manifest.tasks[0]
    part = full_bank.for_tasks(tmp_path / "part", [name])
    assert part.groups == {name: full_bank.groups[name]}  # type: ignore[index]
    assert part.finished_experts == full_bank.finished_experts
    assert len(part.finished_experts) > 1


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool])
        ),
        max_size=5,
    )
)
def test_safetensors_reads_what_is_written(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    tensors = {name: torch.randint(0, 9, shape).to(dtype) for name, (shape, dtype) in shapes.items()}
    record = write_tensors(path, tensors)
    assert record.bytes == path.stat().st_size
    for read in (load_file(path), read_tensors(path, record)):
        assert equal(read, tensors)
        assert {name: t.dtype for name, t in read.items()} == {name: t.dtype for name, t in tensors.items()}
    with pytest.raises(BankError, match="damaged or foreign"):
        read_tensors(path, FileRecord("0" * 64, record.bytes))


def raw_file(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_files_are_read_or_refused_as_safetensors_itself_does(tmp_path_factory: pytest.TempPathFactory, draw: Any) -> None:
    """One number of a whole file is changed, or its length."""
    number = st.integers(-3, 40)
    header = {"a": entry("BOOL", [3], 0, 3), "b": entry("F32", [2, 2], 3, 19), "c": entry("BF16", [0, 4], 19, 19)}
    header["d"] = entry("I64", [], 19, 27)
    field = draw.draw(st.sampled_from(["shape", "data_offsets", "dtype", "nothing"]))
    changed = header[draw.draw(st.sampled_from("abcd"))]
    if field == "dtype":
        changed["dtype"] = draw.draw(st.sampled_from(["F32", "I32", "F16", "U8", "F99", None]))
    elif field != "nothing" and changed[field]:
        changed[field][draw.draw(st.integers(0, len(changed[field]) - 1))] = draw.draw(number)
    if draw.draw(st.booleans()):
        header["__metadata__"] = {"made": "here"}
    text = json.dumps(header).encode()
    content = raw_file(text, bytes(range(1, 28))[: draw.draw(st.sampled_from([27, 27, 27, 26]))])
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    path.write_bytes(content)
    record = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    try:
        expected = load(content)
    except (SafetensorError, AssertionError):
        with pytest.raises(BankError, match="not a safetensors file"):
            read_tensors(path, record)
    else:
        found = read_tensors(path, record)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "content",
    [b"", b"\1", raw_file(b"[1]", b""), raw_file(b"nothing", b""), (1 << 62).to_bytes(8, "little"), raw_file(b"\xff", b"")],
)
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BankError, match="x is not a safetensors file"):
        read_tensors(tmp_path / "x", FileRecord(hashlib.sha256(content).hexdigest(), len(content)))


def test_tensors_of_one_file_can_be_changed_apart(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0), "b": torch.arange(7)}
    record = write_tensors(tmp_path / "x", tensors)
    first, second = read_tensors(tmp_path / "x", record), read_tensors(tmp_path / "x", record)
    first["a"].zero_()
    assert torch.equal(first["b"], tensors["b"])
    assert equal(second, tensors)
    assert equal(read_tensors(tmp_path / "x", record), tensors)


def test_transposed_tensors_are_written_in_their_logical_order(tmp_path: Path) -> None:
    tensor = torch.arange(24.0).view(2, 3, 4).mT
    write_tensors(tmp_path / "x", {"a": tensor})
    assert torch.equal(load_file(tmp_path / "x")["a"], tensor)
