"""Lower precision: what is stored in it, how far outputs move, and that the choice follows the measurement."""

import pytest
import torch
from model.test_prompt_dt import CHOICES, make_window

from m3dt_agent.config import ModelConfig
from m3dt_agent.model import M3DT, Routing, faster_precision, precision


def small_model() -> M3DT:
    """As initialized, but with experts that add something."""
    torch.manual_seed(0)
    model = M3DT(ModelConfig.preset("small")).eval()
    with torch.no_grad():
        for parameter in model.expert_tensors().values():
            parameter.normal_(std=0.02)
    return model


@pytest.mark.parametrize("choice", [*CHOICES, Routing(mass=0.9999)])
def test_bfloat16_stays_within_two_hundredths_of_float32(choice):
    model, window, prompt = small_model(), make_window(0, 8, batch=6), make_window(1, 5, batch=6)
    with torch.no_grad():
        expected = model(window, prompt, choice)
        model.requires_grad_(False).lower_frozen(torch.bfloat16)
        with model.autocast():
            lowered = model(window, prompt, choice)
    assert float((lowered.float() - expected).abs().max()) < 2e-2
    assert not torch.equal(lowered.float(), expected)


def test_only_what_is_frozen_and_multiplied_is_stored_lower():
    model = small_model().requires_grad_(False)
    for parameter in model.router_tensors().values():
        parameter.requires_grad_(True)
    assert not torch.is_autocast_enabled("cpu")
    with model.autocast():
        assert not torch.is_autocast_enabled("cpu")  # nothing is lowered yet
    model.lower_frozen(torch.bfloat16)
    with model.autocast():
        assert torch.is_autocast_enabled("cpu")
    for name, parameter in model.named_parameters():
        in_a_product = name.startswith("blocks.") and ".router." not in name and ".ln_" not in name
        assert parameter.dtype == (torch.bfloat16 if in_a_product else torch.float32), name


def test_another_layout_changes_no_value():
    model = small_model().requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.lay_out_for_training()
    assert model.blocks[0].experts.w_in.stride() != before["blocks.0.experts.w_in"].stride()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(("lower", "chosen"), [(0.5, "bfloat16"), (0.9, "float32"), (3.0, "float32")])
def test_the_choice_follows_the_measurement(monkeypatch, lower, chosen):
    monkeypatch.setattr(precision, "_seconds", lambda *args: lower if args[-1] == torch.bfloat16 else 1.0)
    assert faster_precision(10, 32, "cpu") == chosen
    monkeypatch.undo()
    assert faster_precision(10, 32, "cpu") in ("float32", "bfloat16")
