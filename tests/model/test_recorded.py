"""Recorded decisions: the actions of `M3DT.act` to the last bit, whatever changes between two of them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.windows import Window
from m3dt_agent.model import M3DT, ExpertChoice, PromptCache, Routing, recorded, with_same_weights
from m3dt_agent.model.recorded import MOST_ROWS, RECORD_AFTER, Recordings, recordings_of

T, P = 3, 2
CHANGES: list[dict[str, Any]] = [
    {},
    {"use_returns": False, "use_timesteps": False, "use_embed_norm": False},
    {"residual": "published", "top_k": 2},
]


def make_model(kind: type[M3DT] = M3DT, **changes: Any) -> M3DT:
    torch.manual_seed(0)
    model = kind(ModelConfig(16, 2, 2, 4, T, P, state_dim=5, act_dim=3, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def make_window(rows: int, steps: int, seed: int) -> Window:
    made = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    mask[: rows // 2, : seed % steps] = False
    return Window(
        torch.randn(rows, steps, 5, generator=made),
        torch.randn(rows, steps, 3, generator=made),
        torch.randn(rows, steps, 1, generator=made),
        torch.arange(steps).repeat(rows, 1) + seed,
        mask,
    )


def recorded_model(experts: ExpertChoice, **changes: Any) -> tuple[M3DT, Recordings, PromptCache]:
    """A model that has acted often enough, and the prompts of the rows with which it did."""
    with torch.inference_mode(False):  # its weights are none of inference
        model = make_model(**changes)
    cache = model.encode_prompt(make_window(MOST_ROWS, P, 1), experts)
    recordings = recordings_of(model)
    recordings.prepare(model, cache, experts)
    for step in range(RECORD_AFTER):
        assert not recordings._graphs, "it has not made enough decisions yet"
        recordings.act(model, make_window(1, T, step), cache.select([0]), experts)
    recordings.prepare(model, cache, experts)
    return model, recordings, cache


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every decision that `M3DT.act` made itself."""
    eager: list[int] = []
    act = M3DT.act

    def counted(self: M3DT, window: Window, cache: PromptCache, experts: ExpertChoice = "none") -> torch.Tensor:
        eager.append(window.mask.shape[0])
        return act(self, window, cache, experts)

    monkeypatch.setattr(M3DT, "act", counted)
    return eager


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("experts", ["none", "mixture", 2])
def test_a_recording_acts_as_the_model_to_the_last_bit(experts: ExpertChoice, changes: dict[str, Any]) -> None:
    with torch.inference_mode():
        model, recordings, cache = recorded_model(experts, **changes)
        assert [graph is not None for graph in recordings._graphs.values()] == [True]
        for rows in range(1, MOST_ROWS + 1):
            window, prompts = make_window(rows, T, 50 + rows), cache.select(torch.arange(rows))
            assert torch.equal(recordings.act(model, window, prompts, experts), model.act(window, prompts, experts))


def test_python_runs_no_more_once_a_decision_is_recorded(replayed: list[int]) -> None:
    with torch.inference_mode():
        model, recordings, cache = recorded_model("mixture")
        replayed.clear()
        recordings.act(model, make_window(2, T, 0), cache.select([0, 1]), "mixture")
        assert replayed == []
        many = cache.select([0] * (MOST_ROWS + 1))
        recordings.act(model, make_window(MOST_ROWS + 1, T, 0), many, "mixture")
        recordings.act(model, make_window(1, T, 0), cache.select([0]), 1)
        recordings.act(model, make_window(1, T, 0), cache.select([0]), Routing(mass=0.9))
        assert replayed == [MOST_ROWS + 1, 1, 1], "many rows, other experts, and routed ones are the model's own"


def test_weights_that_change_in_place_change_what_was_recorded() -> None:
    with torch.inference_mode():
        model, recordings, cache = recorded_model("mixture")
        window, prompts = make_window(1, T, 7), cache.select([0])
        before = recordings.act(model, window, prompts, "mixture")
        model.load_expert(1, {name: tensor * 3 for name, tensor in model.expert_slice(1).items()})
        after = recordings.act(model, window, prompts, "mixture")
        assert not torch.equal(before, after)
        assert torch.equal(after, model.act(window, prompts, "mixture"))


def test_hooks_see_every_decision() -> None:
    with torch.inference_mode():
        model, recordings, cache = recorded_model("mixture")
        seen: list[int] = []
        hook = model.blocks[1].register_forward_hook(lambda *_: seen.append(1))
        recordings.act(model, make_window(1, T, 0), cache.select([0]), "mixture")
        hook.remove()
        recordings.act(model, make_window(1, T, 0), cache.select([0]), "mixture")
    assert seen == [1]


def test_a_model_of_ones_own_is_not_recorded() -> None:
    class Own(M3DT):
        pass

    model = make_model(Own)
    with torch.inference_mode():
        cache = model.encode_prompt(make_window(2, P, 1))
        for step in range(RECORD_AFTER + 1):
            recordings_of(model).act(model, make_window(1, T, step), cache.select([0]), "none")
        recordings_of(model).prepare(model, cache, "none")
    assert not recordings_of(model)._graphs


def test_what_torch_cannot_record_or_records_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cannot be traced")

    def wrong(module: Any, given: Any, **_: Any) -> Any:
        return lambda *tensors: module(*tensors) + 1e-7

    for trace in (fails, wrong):
        monkeypatch.setattr(recorded.torch.jit, "trace", trace)
        with torch.inference_mode():
            model, recordings, cache = recorded_model("none")
            assert list(recordings._graphs.values()) == [None]
            window, prompts = make_window(1, T, 3), cache.select([0])
            assert torch.equal(recordings.act(model, window, prompts, "none"), model.act(window, prompts, "none"))


def test_copies_begin_without_recordings() -> None:
    with torch.inference_mode():
        model, recordings, _ = recorded_model("none")
    assert recordings is recordings_of(model)
    assert set(model.state_dict()) == set(make_model().state_dict())
    for other in (copy.deepcopy(model), with_same_weights(model), pickle.loads(pickle.dumps(model))):
        assert not recordings_of(other)._graphs
