"""Banks of strangers: numbers that promise gigabytes, links that lead outside, special files; looked at on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_banks import CONFIG, edit, forge, new_bank, parts, random_model, tree

from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.journal import JOURNAL
from m3dt_agent.bank.sizes import element_counts
from m3dt_agent.config import DataConfig, ModelConfig
from m3dt_agent.errors import BankError, ConfigError, M3DTError, PathError
from m3dt_agent.model import M3DT

LIMITED = """
import resource, sys, time
from m3dt_agent.errors import M3DTError
from m3dt_agent.bank import ExpertBank
import m3dt_agent.config, m3dt_agent.model, torch
torch.set_num_threads(1)
with torch.device("meta"):  # loads what torch loads late
    m3dt_agent.model.M3DT(m3dt_agent.config.ModelConfig.preset("tiny"))
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 600_000_000,) * 2)
print("ready", flush=True)
for line in sys.stdin:
    check, path = line.strip().split(" ", 1)
    start = time.process_time()
    try:
        ExpertBank.open(path, check=check).model()
    except M3DTError as error:
        told = "refused " + str(error)[:300]
    else:
        told = "loaded"
    print(f"{time.process_time() - start} {told}", flush=True)
"""
Load = Callable[[Path, str], str]


@pytest.fixture(scope="module")
def load_limited() -> Iterator[Load]:
    """Loads banks in a process that may take 0.6 GB more than it has; says what came of it."""
    command = [sys.executable, "-c", LIMITED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        to, of = process.stdin, process.stdout

        def load(path: Path, check: str) -> str:
            to.write(f"{check} {path}\n")
            to.flush()
            seconds, told = of.readline().split(" ", 1)
            assert float(seconds) < 5
            return told

        yield load
        to.close()


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_timesteps": 10**8},
        {"max_timesteps": 10_000, "embed_dim": 8192},
        {"n_layers": 20_000},
        {"n_layers": 256, "embed_dim": 4096},
        {"n_experts": 10**9},
        {"state_dim": 10**9},
        {"context_length": 10**12},
        {"ffn_multiple": 10**6},
        {"embed_dim": -16},
        {"embed_dim": "16"},
    ],
    ids=str,
)
def test_numbers_of_a_manifest_decide_no_allocation(full_bank: ExpertBank, load_limited: Load, numbers: dict[str, Any]) -> None:
    assert load_limited(full_bank.path, "contents") == "loaded\n"
    edit(full_bank.path, lambda manifest: manifest["model"].update(numbers))
    for check in ("contents", "sizes"):
        assert load_limited(full_bank.path, check).startswith("refused")


def test_elements_are_counted_as_the_model_has_them() -> None:
    for config in (CONFIG, ModelConfig.preset("tiny", n_layers=5), ModelConfig.preset("tiny", n_layers=1, n_experts=0)):
        model = M3DT(config)
        parts = {"backbone": model.backbone_tensors(), "experts": model.expert_tensors(), "router": model.router_tensors()}
        assert element_counts(config) == {name: sum(t.numel() for t in part.values()) for name, part in parts.items()}


@pytest.mark.parametrize(
    "config", [ModelConfig.preset(name) for name in ("tiny", "small", "paper")], ids=["tiny", "small", "paper"]
)
def test_presets_and_the_shipped_bank_are_far_below_the_bounds(config: ModelConfig) -> None:
    larger = {"n_layers": 64, "embed_dim": 2048, "n_experts": 500, "context_length": 100, "max_timesteps": 5000}
    ModelConfig(**{**config.to_dict(), **larger})
    with pytest.raises(ConfigError, match="n_experts must be at most 1,000; got 1001"):
        ModelConfig(**{**config.to_dict(), "n_experts": 1001})
    with pytest.raises(ConfigError, match="n_prompts must be at most 1,000"):
        DataConfig(n_prompts=1001)


def test_weights_with_thousands_of_names_are_refused(full_bank: ExpertBank, load_limited: Load) -> None:
    real = full_bank.read("backbone.safetensors")
    small = {f"blocks.{i}.attention.query.weight": torch.zeros(16, 16) for i in range(3_000)}
    forge(full_bank.path, "backbone.safetensors", {**real, **small})
    assert "does not fit this bank's model" in load_limited(full_bank.path, "contents")


def test_a_sparse_manifest_of_3_gb_is_refused(full_bank: ExpertBank, load_limited: Load) -> None:
    os.truncate(full_bank.path / "bank.json", 3 << 30)
    assert "more than" in load_limited(full_bank.path, "contents")


@pytest.mark.parametrize("name", ["backbone", "statistics", "prompts"])
def test_a_sparse_file_is_refused_before_it_is_read(full_bank: ExpertBank, load_limited: Load, name: str) -> None:
    size, file = 1 << 40, f"{name}.safetensors"
    os.truncate(full_bank.path / file, size)
    assert load_limited(full_bank.path, "sizes").startswith("refused")  # its size is not the recorded one
    edit(full_bank.path, lambda manifest: manifest["files"][file].update(bytes=size))
    bank = ExpertBank.open(full_bank.path, check="sizes")
    with pytest.raises(BankError, match=r"does not fit|GB of memory; this machine has"):
        bank.model() if name == "backbone" else getattr(bank, name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m["files"]["prompts.safetensors"].update(bytes=-1), r"bytes must be in 0 …"),
        (lambda m: m["files"]["prompts.safetensors"].update(bytes=1 << 50), r"bytes must be in 0 …"),
        (lambda m: m["files"]["prompts.safetensors"].update(bytes="8"), "bytes must be an integer"),
        (lambda m: m["files"]["prompts.safetensors"].update(sha256="x" * 10**5), "sha256 must be 64 hexadecimal digits"),
        (lambda m: m["files"].update(prompts=3), "prompts must be an object"),
        (lambda m: m.update(files=[]), "files must be an object"),
        (lambda m: m.update(tasks=["reach"] * 10**5), "none twice"),
        (lambda m: m.update(tasks=[]), "at least one task"),
        (lambda m: m.update(tasks={"reach": 1}), "tasks must be a list"),
        (lambda m: m.update(tasks=[["reach"]]), r"tasks\[0\] must be a string"),
        (lambda m: m.update(groups={"reach": True, "walker-run": 0}), "groups.reach must be an integer"),
        (lambda m: m.update(stages=[]), "stages must be an object"),
        (lambda m: m.update(stages={"router": 3}), "stages.router must be an object"),
        (lambda m: m.update(stages={"router": {"config": {"concentrate": "x"}}}), "stages.router.config.concentrate"),
        (lambda m: m.update(stages={"router": {"config": []}}), "must be an object"),
        (lambda m: m.update(stages={"backbone": {"threads": 10**9}}), "threads must be in 1 … 1024"),
        (lambda m: m.update(stages={"backbone": {"data": 3}}), "data .*must be a string"),
        (lambda m: m.update(grouping=[1]), "grouping must be an object; got"),
        (lambda m: m["model"].update(dropout=None), "model.dropout must be a number"),
        (lambda m: m["data"].update(n_prompts=10**9), "n_prompts must be at most"),
        (lambda m: m.pop("model"), "lacks model"),
    ],
)
def test_wrong_types_and_numbers_are_named(
    full_bank: ExpertBank, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    edit(full_bank.path, change)
    with pytest.raises(BankError, match=told) as caught:
        ExpertBank.open(full_bank.path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"format": "m3dt-bank", "format": "x"}', '{"a": NaN}', '"\\ud800"', "null"],
    ids=lambda text: text[:9],
)
def test_text_that_is_no_manifest(full_bank: ExpertBank, text: str) -> None:
    (full_bank.path / "bank.json").write_text(text)
    with pytest.raises(BankError, match=r"bank\.json is damaged or foreign"):
        ExpertBank.open(full_bank.path)


def test_a_header_of_deep_json_or_of_gigabytes_is_refused(full_bank: ExpertBank) -> None:
    name = "router.safetensors"
    for header in (b"[" * 10**5, b'{"a":' * 10**5, b" " * (5 << 20)):
        content = len(header).to_bytes(8, "little") + header
        (full_bank.path / name).write_bytes(content)
        record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        edit(full_bank.path, lambda manifest, record=record: manifest["files"].update({name: record}))
        with pytest.raises(BankError, match="is not a safetensors file"):
            ExpertBank.open(full_bank.path).read(name)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("statistics", {"reach/mean": torch.zeros(7), "reach/std": torch.ones(7)}, "observations of 39"),
        ("prompts", {"reach/0/states": torch.zeros(2, 7)}, "39 . 4 wide"),
        ("prompts", {"reach/0/timesteps": torch.tensor([0, 10**9])}, r"outside \[0, 1000\)"),
        ("prompts", {"reach/0/timesteps": torch.tensor([-1, 0])}, r"outside \[0, 1000\)"),
    ],
)
def test_statistics_and_prompts_fit_their_tasks(
    full_bank: ExpertBank, name: str, change: dict[str, torch.Tensor], told: str
) -> None:
    file = f"{name}.safetensors"
    forge(full_bank.path, file, {**full_bank.read(file), **change})
    with pytest.raises(BankError, match=told):
        getattr(ExpertBank.open(full_bank.path), name)


def test_a_prompt_longer_than_the_model_takes_is_refused(full_bank: ExpertBank) -> None:
    tensors = full_bank.read("prompts.safetensors")
    tensors |= {key: t.repeat(5, *[1] * (t.ndim - 1)) for key, t in tensors.items() if key.startswith("reach/0/")}
    forge(full_bank.path, "prompts.safetensors", tensors)
    with pytest.raises(BankError, match="10 steps; 2 are possible"):
        _ = ExpertBank.open(full_bank.path).prompts


# -- special files and links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bank.json", "router.safetensors", "experts/001.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "loop", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(full_bank: ExpertBank, name: str, kind: str) -> None:
    file = full_bank.path / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "zero" else file.name)
    for check in ("contents", "sizes"):
        with pytest.raises(BankError, match=file.name):
            ExpertBank.open(full_bank.path, check=check)


def outside(tmp_path: Path) -> Path:
    """A folder of the user, with files that look like a bank's leftovers."""
    folder = tmp_path / "theirs"
    (folder / "inner").mkdir(parents=True)
    for name in ("000.safetensors", "000.safetensors.next", "001.safetensors.next", ".lock", "backbone.csv", "key"):
        (folder / name).write_text("theirs")
    return folder


@pytest.mark.parametrize("name", ["experts", "resume", "logs", "resume/.lock", "logs/backbone.csv", "logs/tensorboard"])
def test_nothing_is_written_through_a_link_inside_a_bank(tmp_path: Path, name: str) -> None:
    """A stranger's link leads into the user's folder: commits, training locks, checkpoints and logs leave it alone."""
    from m3dt_agent.training.checkpoint import RunState, training_lock, write_checkpoint
    from m3dt_agent.training.logs import RunLog
    from m3dt_agent.training.tracking import TrackedRun
    from m3dt_agent.training.tracking.trackers import TensorBoard

    theirs = outside(tmp_path)
    bank = new_bank(tmp_path / "bank")
    link = bank.path / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(theirs / {"resume/.lock": "key", "logs/backbone.csv": "backbone.csv"}.get(name, ""))
    before = tree(theirs)
    state = RunState("backbone", "backbone", 1, 0.0, 1, {}, {}, [], [], 0)
    refused = 0
    actions: list[Callable[[], object]] = [
        lambda: bank.commit(parts(random_model())),
        lambda: training_lock(bank.path).__enter__(),
        lambda: write_checkpoint(bank.path, state, {"weights": {"a": torch.zeros(2)}}),
        lambda: RunLog(bank.path, "backbone", "backbone", experts=(), step=0, steps=1, progress=False),
        lambda: TensorBoard().start(TrackedRun("backbone", "bank", bank.path / "logs", {})),
    ]
    for action in actions:
        try:
            action()
        except PathError as error:
            refused += "symbolic link" in str(error)
    assert refused >= 1
    assert tree(theirs) == before


def test_a_commit_replaces_links_instead_of_writing_through_them(tmp_path: Path) -> None:
    bank = new_bank(tmp_path / "bank")
    bank.commit(parts(random_model()))
    theirs = tmp_path / "theirs"
    theirs.write_bytes((bank.path / "router.safetensors").read_bytes())
    (bank.path / "router.safetensors").unlink()
    (bank.path / "router.safetensors").symlink_to(theirs)
    for name in ("router.safetensors.next", "backbone.safetensors.next"):
        (bank.path / name).symlink_to(theirs)
    before = theirs.read_bytes()
    new = parts(random_model(1))
    ExpertBank.open(bank.path).commit(new)
    assert theirs.read_bytes() == before
    assert not (bank.path / "router.safetensors").is_symlink()
    assert ExpertBank.open(bank.path).content_hash != bank.content_hash


def test_a_journal_of_a_stranger_moves_nothing_outside(tmp_path: Path) -> None:
    """A journal whose experts/ is a link to the user's folder is refused, and the folder stays as it is."""
    bank = new_bank(tmp_path / "bank")
    bank.commit(parts(random_model()))
    theirs = tmp_path / "theirs"
    (bank.path / "experts").rename(theirs)
    (bank.path / "experts").symlink_to(theirs)
    (theirs / "000.safetensors.next").write_bytes((theirs / "000.safetensors").read_bytes())
    (bank.path / JOURNAL).write_bytes((bank.path / "bank.json").read_bytes())
    before = tree(theirs)
    with pytest.raises(PathError, match="symbolic link"):
        ExpertBank.open(bank.path)
    assert tree(theirs) == before
    assert ExpertBank.open(bank.path, read_only=True).finished_experts == (0, 1)  # reading through links is fine
    assert tree(theirs) == before


# -- paths that cannot be used -------------------------------------------------------------------------------------------------


def test_every_way_to_make_or_open_a_bank_names_a_path_that_cannot_be_used(full_bank: ExpertBank, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "json" / "bank.json").mkdir(parents=True)
    bad = ["file", "file/below", "loop", "x" * 300, "a\0b", "a\ud800b"]
    model = parts(random_model())
    for name in [*bad, "missing", "json"]:
        with pytest.raises(M3DTError) as caught:
            ExpertBank.open(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in [*bad, "full"]:
        for write in (full_bank.copy_to, lambda path: full_bank.for_tasks(path, ["reach"])):
            with pytest.raises((BankError, PathError)):
                write(tmp_path / name)
    for name in [*bad, "json"]:
        with pytest.raises((BankError, PathError)):
            new_bank(tmp_path / name)
    (full_bank.path / "experts").rename(full_bank.path / "moved")
    (full_bank.path / "experts").write_text("a file")
    with pytest.raises((BankError, PathError), match="experts"):
        full_bank.commit(model)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed, whom root becomes")
def test_without_permission_one_line_says_so() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bank, closed, listed = new_bank(root / "bank"), root / "closed", root / "listed"
        new_bank(root / "other")
        for path, mode in ((root / "other" / "bank.json", 0), (bank.path, 0o500), (closed, 0), (listed, 0o500), (root, 0o711)):
            path.mkdir(exist_ok=True) if path in (closed, listed) else None
            path.chmod(mode)
        actions = {
            "open": lambda: ExpertBank.open(root / "other"),
            "open in a closed folder": lambda: ExpertBank.open(closed / "bank"),
            "create": lambda: new_bank(listed / "bank"),
            "create in a closed folder": lambda: new_bank(closed / "bank"),
            "commit": lambda: bank.commit(parts(random_model())),
            "copy": lambda: bank.copy_to(listed / "bank"),
            "copy into a closed folder": lambda: bank.copy_to(closed / "bank"),
        }
        told = as_nobody(actions)
    assert told.keys() == actions.keys()
    assert all("permission" in message and "\n" not in message for message in told.values()), told


def as_nobody(actions: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """What each action says when it is refused, in a child that is nobody."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(65534)
            told = {}
            for name, action in actions.items():
                try:
                    action()
                except M3DTError as error:
                    told[name] = str(error)
            os.write(writing, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    found: dict[str, str] = json.loads(content)
    return found


def test_files_of_a_bank_on_disk_stay_as_they_are_when_it_is_refused(full_bank: ExpertBank) -> None:
    edit(full_bank.path, lambda manifest: manifest["model"].update(max_timesteps=10**8))
    before = tree(full_bank.path)
    for read_only in (True, False):
        with pytest.raises(BankError):
            ExpertBank.open(full_bank.path, read_only=read_only)
    assert tree(full_bank.path) == before
