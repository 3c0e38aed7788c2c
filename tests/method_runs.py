"""Helpers for tests of the benchmark's methods: train a cell's method, compare weights, make the models of two methods, and
packages that bring a method."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.methods import Outcome, Work, base, method
from benchmarks.methods.big_experts import BigExperts
from benchmarks.methods.sample_router import SampleRouted
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Batch
from m3dt_agent.model import M3DT

MakeWork = Callable[..., Work]


def train(work: Work) -> Outcome:
    """All of a method, in the fractions in which it is evaluated."""
    chosen = method(work.cell.method)
    return [chosen.train(work, fraction) for fraction in chosen.fractions][-1]


def model_of(outcome: Outcome) -> M3DT:
    assert isinstance(outcome.policy, M3DTAgent)
    return outcome.policy.model


def weights(outcome: Outcome) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model_of(outcome).state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def part(tensors: dict[str, Tensor], word: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if f".{word}." in name}


def batch_of(work: Work, config: ModelConfig) -> Batch:
    return base.run_sampler(work, config, work.train_config("backbone")).sample(0)


def lively(model: M3DT) -> M3DT:
    """Weights of a few times the usual size, so that nothing is near zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if "experts" in name or parameter.ndim > 1 else 0.05)
    return model.eval()


def big_model(config: ModelConfig) -> BigExperts:
    torch.manual_seed(1)
    plain = dataclasses.replace(config, n_experts=0)
    return BigExperts(lively(M3DT(plain)), [lively(M3DT(plain)) for _ in range(config.n_experts)]).eval()


def sample_model(config: ModelConfig) -> SampleRouted:
    torch.manual_seed(1)
    model = lively(SampleRouted(config))
    assert isinstance(model, SampleRouted)
    return model


EXAMPLE = Path(__file__).parents[1] / "examples" / "method_package"


def put_on_path(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    *,
    name: str = "mine",
    value: str = "my_method:METHOD",
    package: str,
) -> None:
    """What pip leaves of a package with one method, whose module `my_method` is `code`."""
    sys.modules.pop("my_method", None)
    (folder / "my_method.py").write_text(code)
    _write_dist_info(folder, package, "1.0", name, value)
    monkeypatch.syspath_prepend(str(folder))


def put_example_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves of examples/method_package if it is installed as editable."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["m3dt.methods"].items()
    _write_dist_info(folder, project["name"], project["version"], name, value)
    for place in (folder, EXAMPLE):
        monkeypatch.syspath_prepend(str(place))


def _write_dist_info(folder: Path, package: str, version: str, name: str, value: str) -> None:
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[m3dt.methods]\n{name} = {value}\n")
