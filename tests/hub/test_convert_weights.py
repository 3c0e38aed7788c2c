"""Published weights give the published outputs, read from the authors' files or from memory, and come back as they were."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import random_bank, random_datasets
from safetensors.torch import load_file
from torch import Tensor

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import DataConfig, ModelConfig, RouterConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, DiskSpaceError, UnknownTaskError
from m3dt_agent.hub.convert_weights import (
    bank_from_published,
    read_published,
    to_published,
    write_published,
)
from m3dt_agent.model import M3DT

GOLDEN = Path(__file__).parents[1] / "golden" / "published_m3dt_tiny.safetensors"
CONFIG = ModelConfig(32, 2, 4, n_experts=3, context_length=20, prompt_length=5, residual="published")
NAMES = ("reach", "walker-run", "cheetah-vel-20")
BACKBONE = Path("model_saved_backbone", "prompt_model_mt160_iter_400000_seed1")
EXPERTS = Path("model_saved_expert", "gradient")
MIXTURE = Path("model_saved_moe", "gradient", "moe__iter_300000")
UNUSED = ("wte.weight", "predict_state.weight", "predict_state.bias", "predict_return.weight", "predict_return.bias")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.split("/")[0] not in ("input", "output")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    root = tmp_path_factory.mktemp("datasets")
    random_datasets(root, NAMES)
    return TaskDatasets.open(root, NAMES, config=DataConfig.preset("paper"))


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    """The golden weights as the authors' scripts would have left them."""
    root = tmp_path / "theirs"
    save(root / BACKBONE, OrderedDict(inside(weights, "backbone/")) | gpt2_buffers(n_layers=2))
    mixture = blocks(inside(weights, "router/"))
    for e in range(3):
        expert = blocks(inside(weights, f"expert_{e}/"))
        save(root / EXPERTS / f"expert_{e}_iter_200000", expert)
        for block, fields in expert.items():
            mixture[block] |= {f"experts.{e}.{field}": tensor for field, tensor in fields.items()}
    save(root / MIXTURE, mixture)
    return root


def save(path: Path, content: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)


def inside(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor.clone() for name, tensor in weights.items() if name.startswith(prefix)}


def blocks(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"block_0.c_fc.bias": …} as {"block_0": {"c_fc.bias": …}}."""
    names = {name.split(".")[0] for name in flat}
    return {block: inside(flat, f"{block}.") for block in sorted(names)}


def gpt2_buffers(n_layers: int) -> dict[str, Tensor]:
    buffers = {"bias": torch.tril(torch.ones(1024, 1024, dtype=torch.uint8))[None, None], "masked_bias": torch.tensor(-1e4)}
    return {f"transformer.h.{i}.attn.{name}": tensor for i in range(n_layers) for name, tensor in buffers.items()}


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Loads a file, lets `change` alter its content, and saves it again."""
    content = torch.load(path, weights_only=True)
    change(content)
    save(path, content)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def window(tensors: dict[str, Tensor], prefix: str = "") -> Window:
    fields = ("states", "actions", "returns_to_go", "timesteps")
    return Window(*(tensors[f"input/{prefix}{field}"] for field in fields), tensors[f"input/{prefix}mask"].bool())


def assert_published_outputs(model: M3DT, tensors: dict[str, Tensor], outputs: dict[Any, str]) -> None:
    real = window(tensors)
    for experts, output in outputs.items():
        actions = model(real, window(tensors, "prompt_"), experts)
        expected = tensors[f"output/{output}_action_preds"]
        torch.testing.assert_close(actions[real.mask], expected[real.mask], rtol=0, atol=1e-5)


ALL_OUTPUTS = {"none": "backbone", 0: "expert0", "mixture": "moe"}


def test_the_authors_files_become_a_bank_whose_agent_gives_their_outputs(
    folder: Path, tensors: dict[str, Tensor], data: TaskDatasets, tmp_path: Path
) -> None:
    bank = bank_from_published(folder, tmp_path / "bank", data, n_heads=4)
    assert bank.config == CONFIG
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["done"] * 3
    assert (bank.data_config, bank.tasks) == (data.config, data.tasks)
    assert bank.statistics["reach"].target_return == 4500  # the published constant
    agent = M3DTAgent.load(tmp_path / "bank")
    assert_published_outputs(agent.model, tensors, ALL_OUTPUTS)
    agent.reset(task="walker-run")
    assert np.isfinite(agent.act(np.zeros(24, np.float32))).all()


def test_reading_gives_their_tensors_and_writing_gives_them_back(
    folder: Path, weights: dict[str, Tensor], data: TaskDatasets, tmp_path: Path
) -> None:
    assert equal(read_published(folder), weights)
    bank = bank_from_published(folder, tmp_path / "bank", data, n_heads=4)
    for name, source in {"bank": bank, "model": bank.model()}.items():
        write_published(source, tmp_path / "back" / name)
        back = read_published(tmp_path / "back" / name)
        unused = [key for key in weights if key.endswith(UNUSED)]
        assert len(unused) == 5
        assert not any(back.pop(key).any() for key in unused)
        assert equal(back, {key: tensor for key, tensor in weights.items() if key not in unused})


def test_what_is_written_has_the_form_of_what_was_read(folder: Path, data: TaskDatasets, tmp_path: Path) -> None:
    """Key by key, shape by shape, type by type: their `load_state_dict` is strict."""
    write_published(bank_from_published(folder, tmp_path / "bank", data, n_heads=4), tmp_path / "ours")
    theirs, ours = (sorted(path for path in root.rglob("*") if path.is_file()) for root in (folder, tmp_path / "ours"))
    assert len(ours) == len(theirs) == 5
    for their_file, our_file in zip(theirs, ours, strict=True):
        assert form(torch.load(our_file, weights_only=True)) == form(torch.load(their_file, weights_only=True))
    assert [path.relative_to(tmp_path / "ours").parts[0] for path in ours] == [p.relative_to(folder).parts[0] for p in theirs]


def form(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: form(value) for key, value in content.items()}
    return content.shape, content.dtype, content.sum() if content.dtype == torch.uint8 or content.ndim == 0 else None


def test_unfinished_weights_are_read_and_the_next_stage_trains_on_them(
    folder: Path, tensors: dict[str, Tensor], data: TaskDatasets, tmp_path: Path
) -> None:
    (folder / MIXTURE).unlink()
    bank = bank_from_published(folder, tmp_path / "bank", data, n_heads=4)
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["done", "done", "absent"]
    assert_published_outputs(bank.model(), tensors, {"none": "backbone", 0: "expert0"})
    agent = M3DTAgent.load(bank.path)
    agent.fit_stage("router", data, bank=bank.path, config=RouterConfig(steps=1, threads=1), progress=False)
    assert_published_outputs(agent.model, tensors, {"none": "backbone", 0: "expert0"})
    for file in (folder / EXPERTS).iterdir():
        file.unlink()
    alone = bank_from_published(folder, tmp_path / "alone", data, n_heads=4)
    assert alone.config.n_experts == 0
    assert_published_outputs(alone.model(), tensors, {"none": "backbone"})


def test_the_mixtures_own_experts_are_enough(folder: Path, weights: dict[str, Tensor]) -> None:
    (folder / EXPERTS / "expert_1_iter_200000").unlink()
    assert equal(read_published(folder), weights)


def test_of_several_iterations_the_highest_is_read(folder: Path, weights: dict[str, Tensor]) -> None:
    other = {"block_0": {"c_fc.bias": torch.zeros(1)}}
    for iteration in (9, 99_999):  # as text, both come after 200000
        save(folder / EXPERTS / f"expert_1_iter_{iteration}", other)
        save(folder / MIXTURE.with_name(f"moe__iter_{iteration}"), other)
        save(folder / BACKBONE.with_name(f"prompt_model_mt160_iter_{iteration}_seed1"), other)
    save(folder / ".writing-x" / "expert_1_iter_300000", other)
    assert equal(read_published(folder), weights)


def test_files_of_torch_before_1_6_are_read(folder: Path, weights: dict[str, Tensor]) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        save(path, torch.load(path, weights_only=True), _use_new_zipfile_serialization=False)
    assert equal(read_published(folder), weights)


class _Command:
    """Unpickled freely, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("file", [BACKBONE, EXPERTS / "expert_1_iter_200000", MIXTURE], ids=lambda path: path.name)
def test_a_file_is_never_executed(
    folder: Path, tmp_path: Path, file: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a user's setting must not reach our reading
    trap = {"block_0": {"c_fc.bias": _Command(f"touch {tmp_path / 'executed'}")}}
    if container == "pickle":
        (folder / file).write_bytes(pickle.dumps(trap, protocol=2))
    else:
        save(folder / file, trap, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(BankError, match=rf"{file.name} is damaged or foreign: [^\n]*\Z"):
        read_published(folder)
    assert not (tmp_path / "executed").exists()
    torch.load(folder / file, weights_only=False) if container != "pickle" else pickle.loads((folder / file).read_bytes())
    assert (tmp_path / "executed").exists()  # the trap is one


REFUSED: dict[str, tuple[Path, Callable[[Any], object], str]] = {
    "a foreign class": (
        BACKBONE,
        lambda content: content.update({"args": argparse.Namespace(seed=1)}),
        r"seed1 is damaged or foreign: it names argparse\.Namespace",
    ),
    "no tensor": (BACKBONE, lambda content: content.update({"iteration": 5}), "seed1: iteration must be a tensor; got int"),
    "an unknown key": (BACKBONE, lambda content: content.update({"extra": torch.zeros(1)}), "seed1 should not hold extra"),
    "a missing key": (BACKBONE, lambda content: content.pop("embed_ln.bias"), r"seed1 lacks embed_ln\.bias"),
    "no shape to be seen": (
        BACKBONE,
        lambda content: content.pop("embed_state.weight"),
        r"seed1 is no backbone of the authors'.*embed_state",
    ),
    "a vector for a matrix": (
        BACKBONE,
        lambda content: content.update({"embed_timestep.weight": torch.zeros(5)}),
        r"seed1 is no backbone of the authors'.*two dimensions; got \(5,\)",
    ),
    "another shape": (
        BACKBONE,
        lambda content: content.update({"transformer.ln_f.bias": torch.zeros(31)}),
        r"seed1: transformer\.ln_f\.bias must have shape \(32,\); got \(31,\)",
    ),
    "another type": (
        BACKBONE,
        lambda content: content.update({"embed_ln.bias": torch.zeros(32, dtype=torch.float64)}),
        r"seed1: embed_ln\.bias must be a dense tensor of torch\.float32; got torch\.float64",
    ),
    "another layout": (
        BACKBONE,
        lambda content: content.update({"embed_ln.bias": torch.ones(32).to_sparse()}),
        r"seed1: embed_ln\.bias must be a dense tensor of torch\.float32; got torch\.float32, torch\.sparse_coo",
    ),
    "another device": (
        BACKBONE,
        lambda content: content.update({"embed_ln.bias": torch.ones(32, device="meta")}),
        r"seed1: embed_ln\.bias must be a dense tensor of torch\.float32; got torch\.float32, torch\.strided, on meta",
    ),
    "a tensor without its numbers": (
        BACKBONE,
        lambda content: content.update({"embed_timestep.weight": torch.zeros(1).expand(10**9, 32)}),
        r"seed1: embed_timestep\.weight holds fewer numbers",
    ),
    "NaN": (BACKBONE, lambda content: content["embed_ln.weight"][3].fill_(float("nan")), r"embed_ln\.weight holds a NaN"),
    "a mask that is not causal": (
        BACKBONE,
        lambda content: content["transformer.h.1.attn.bias"].fill_(1),
        r"other values than GPT-2 in transformer\.h\.0\.attn\.bias, transformer\.h\.1\.attn\.bias",  # one storage
    ),
    "a buffer of no block": (
        BACKBONE,
        lambda content: content.update({"transformer.h.2.attn.masked_bias": torch.tensor(-1e4)}),
        r"should not hold transformer\.h\.2\.attn\.masked_bias",
    ),
    "a block that is none": (
        EXPERTS / "expert_1_iter_200000",
        lambda content: content.update({"optimizer": {}}),
        "expert_1_iter_200000 must hold 'block_<i>' → dict of tensors; got 'optimizer'",
    ),
    "a block that is a tensor": (
        EXPERTS / "expert_1_iter_200000",
        lambda content: content.update({"block_1": torch.zeros(2)}),
        "expert_1_iter_200000 must hold .*'block_1' → Tensor",
    ),
    "a missing block": (
        EXPERTS / "expert_1_iter_200000",
        lambda content: content.pop("block_1"),
        r"expert_1_iter_200000 lacks block_1\.c_fc\.bias",
    ),
    "experts that disagree": (
        EXPERTS / "expert_1_iter_200000",
        lambda content: content["block_1"]["c_proj.bias"][0].add_(1e-6),
        r"expert_1_iter_200000 and .*moe__iter_300000 disagree about expert_1/block_1\.c_proj\.bias",
    ),
    "a missing expert in the mixture": (
        MIXTURE,
        lambda content: [block.pop(key) for block in content.values() for key in list(block) if key.startswith("experts.2.")],
        "moe__iter_300000: its router weighs 3 experts; the file holds experts 0, 1",
    ),
    "a missing router layer": (
        MIXTURE,
        lambda content: content["block_0"].pop("router.fc_new.weight"),
        r"moe__iter_300000 lacks block_0\.router\.fc_new\.weight",
    ),
    "an unknown router layer": (
        MIXTURE,
        lambda content: content["block_1"].update({"router.fc5.bias": torch.zeros(3)}),
        r"moe__iter_300000 should not hold block_1\.router\.fc5\.bias",
    ),
}


@pytest.mark.parametrize(("file", "change", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_file_with_anything_else_in_it_is_refused_by_name(
    folder: Path, file: Path, change: Callable[[Any], object], message: str
) -> None:
    edit(folder / file, change)
    with pytest.raises(BankError, match=message):
        read_published(folder)


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_named(folder: Path, share: float, zipped: bool) -> None:
    path = folder / EXPERTS / "expert_2_iter_200000"
    save(path, torch.load(path, weights_only=True), _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BankError, match="expert_2_iter_200000 is damaged or foreign"):
        read_published(folder)


def test_what_is_not_one_set_of_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="nowhere is not a folder"):
        read_published(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BankError, match=r"no backbone in .*empty or its subfolders: no file prompt_model_"):
        read_published(tmp_path / "empty")
    second = folder / BACKBONE.with_name("prompt_model_mt160_iter_400000_seed2")
    second.write_bytes((folder / BACKBONE).read_bytes())
    with pytest.raises(BankError, match=r"several series of backbone files.*_seed1.*_seed2"):
        read_published(folder)
    second.unlink()
    (folder / EXPERTS.with_name("random")).mkdir()
    (folder / EXPERTS / "expert_2_iter_200000").rename(folder / EXPERTS.with_name("random") / "expert_2_iter_200000")
    with pytest.raises(BankError, match=r"several series of expert files.*gradient.*random"):
        read_published(folder)


def test_a_gap_between_experts_is_refused(folder: Path) -> None:
    (folder / EXPERTS / "expert_1_iter_200000").unlink()
    (folder / MIXTURE).unlink()
    with pytest.raises(BankError, match="has files of experts 0, 2; expert 1 is missing"):
        read_published(folder)


def test_an_expert_that_the_mixture_does_not_have_is_refused(folder: Path) -> None:
    (folder / EXPERTS / "expert_3_iter_5").write_bytes((folder / EXPERTS / "expert_2_iter_200000").read_bytes())
    with pytest.raises(BankError, match=r"expert_3_iter_5 holds expert_3/.*moe__iter_300000 has no such expert"):
        read_published(folder)


GROUPS = {"expert_0": ["reach-v2"], "expert_1": ["cheetah-vel-20"], "expert_2": ["walker-run"]}


def test_the_authors_groups_go_into_the_bank(folder: Path, data: TaskDatasets, tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text(json.dumps(GROUPS))
    bank = bank_from_published(folder, tmp_path / "bank", data, groups=tmp_path / "groups.json", n_heads=4)
    assert bank.groups == {"reach": 0, "cheetah-vel-20": 1, "walker-run": 2}


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("{", ConfigError, "is not a JSON file of groups"),
        ("[1]", ConfigError, "must hold 'expert_<e>' → list of tasks"),
        ('{"group_0": []}', ConfigError, "must hold 'expert_<e>' → list of tasks; got 'group_0'"),
        ('{"expert_0": ["reech-v2"]}', UnknownTaskError, "did you mean reach-v2"),
        ('{"expert_0": ["reach-v2"], "expert_1": ["reach-v2"]}', ConfigError, "'reach-v2' to experts 0 and 1"),
        (json.dumps(GROUPS | {"expert_0": ["push-v2"]}), ConfigError, r"differ in \['push', 'reach'\]"),
        (json.dumps(GROUPS | {"expert_0": ["reach-v2", "push-v2"]}), ConfigError, r"differ in \['push'\]"),
    ],
)
def test_groups_that_do_not_fit_leave_no_bank(
    folder: Path, data: TaskDatasets, tmp_path: Path, groups: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "groups.json").write_text(groups)
    with pytest.raises(error, match=message):
        bank_from_published(folder, tmp_path / "banks" / "bank", data, groups=tmp_path / "groups.json", n_heads=4)
    assert not [*(tmp_path / "banks").glob("*")]


@pytest.fixture
def small_files() -> Iterator[None]:
    """The operating system refuses files over 50 kB, as a full disk would."""
    kept, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, kept[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(folder: Path, data: TaskDatasets, tmp_path: Path, small_files: None) -> None:
    with pytest.raises(DiskSpaceError, match="backbone"):
        bank_from_published(folder, tmp_path / "out" / "bank", data, n_heads=4)
    with pytest.raises(DiskSpaceError, match="files"):
        write_published(M3DT(CONFIG), tmp_path / "out" / "files")
    assert not [*(tmp_path / "out").glob("*")]


def test_nothing_is_overwritten(folder: Path, data: TaskDatasets, tmp_path: Path) -> None:
    for convert in (
        lambda: bank_from_published(folder, tmp_path, data, n_heads=4),
        lambda: write_published(M3DT(CONFIG), tmp_path),
    ):
        with pytest.raises(BankError, match="exists and is not an empty folder"):
            convert()


def test_heads_that_do_not_fit_are_named(folder: Path, data: TaskDatasets, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_heads must be a divisor of embed_dim=32"):
        bank_from_published(folder, tmp_path / "bank", data, n_heads=5)


def test_experts_of_another_function_are_written_on_demand_only(data: TaskDatasets, tmp_path: Path) -> None:
    standard = ModelConfig.preset("tiny")
    bank = random_bank(tmp_path / "bank", data, standard)
    with pytest.raises(ConfigError, match="residual='standard'"):
        write_published(bank, tmp_path / "files")
    write_published(bank, tmp_path / "files", allow_standard_residual=True)
    assert equal(read_published(tmp_path / "files"), to_published(bank.model()))
    backbone = random_bank(tmp_path / "backbone", data, standard, experts=False)
    write_published(backbone, tmp_path / "same function")
    assert equal(read_published(tmp_path / "same function"), to_published(backbone.model()))
    with pytest.raises(ConfigError, match="top_k=2"):
        write_published(M3DT(ModelConfig.preset("tiny", residual="published", top_k=2)), tmp_path / "top")
    with pytest.raises(ConfigError, match="ffn_multiple=8"):
        write_published(M3DT(ModelConfig.preset("tiny", residual="published", ffn_multiple=8)), tmp_path / "wide")


def test_a_bank_stored_as_bfloat16_gives_float32_weights(folder: Path, data: TaskDatasets, tmp_path: Path) -> None:
    bank = bank_from_published(folder, tmp_path / "bank", data, n_heads=4)
    narrow = bank.copy_to(tmp_path / "narrow", storage="bfloat16")
    write_published(narrow, tmp_path / "files")
    found = read_published(tmp_path / "files")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert equal(found, {name: t.to(torch.bfloat16).float() for name, t in to_published(bank.model()).items()})


def test_an_unfinished_bank_gives_what_it_has(data: TaskDatasets, tmp_path: Path) -> None:
    config = ModelConfig.preset("tiny", residual="published")
    whole = random_bank(tmp_path / "whole", data, config)
    bank = random_bank(tmp_path / "bank", data, config, experts=False)
    bank.commit(
        {"experts/001.safetensors": whole.read("experts/001.safetensors")},
        stages={"backbone": {"config": {"steps": 70, "seed": 3}}, "experts": {"config": {"steps": 20}}},
    )
    write_published(ExpertBank.open(bank.path), tmp_path / "files")
    names = {path.name for path in (tmp_path / "files").rglob("*") if path.is_file()}
    assert names == {"prompt_model_m3dt_iter_70_seed3", "expert_1_iter_20"}
    expert = torch.load(tmp_path / "files" / "model_saved_expert" / "m3dt" / "expert_1_iter_20", weights_only=True)
    theirs = to_published(whole.model())
    assert all(torch.equal(expert[f"block_{i}"]["c_fc.weight"], theirs[f"expert_1/block_{i}.c_fc.weight"]) for i in range(2))
