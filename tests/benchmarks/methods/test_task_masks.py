"""Masks of tasks over a model's weights: as dense as asked, different between tasks, and kept as bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.methods.task_masks import TaskMasks, erk_densities, maskable
from m3dt_agent.config import ModelConfig
from m3dt_agent.model import M3DT


def test_erk_densities_are_the_kernels_and_the_whole_is_as_dense_as_asked() -> None:
    shapes = {name: p.shape for name, p in maskable(M3DT(ModelConfig.preset("paper", n_experts=0))).items()}
    densities = erk_densities(shapes, 0.8)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(sizes[name] * d for name, d in densities.items()) == pytest.approx(0.8 * sum(sizes.values()), rel=1e-12)
    scales = [densities[name] / (sum(shape) / sizes[name]) for name, shape in shapes.items() if densities[name] < 1]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=1e-12)
    dense = {name for name, d in densities.items() if d == 1}
    assert all(scales[0] * sum(shapes[name]) / sizes[name] >= 1 for name in dense)
    assert {name for name, shape in shapes.items() if len(shape) == 1} <= dense < shapes.keys()
    assert densities["blocks.0.ffn.w_in.weight"] < densities["blocks.0.attention.key_value.weight"] < 1
    assert set(erk_densities(shapes, 1.0).values()) == {1.0}


def test_masks_are_random_differ_between_tasks_and_leave_out_embeddings_and_head() -> None:
    model = M3DT(ModelConfig.preset("small", n_experts=0))
    parameters = maskable(model)
    left_out = {name.split(".")[0] for name in dict(model.named_parameters()).keys() - parameters.keys()}
    assert left_out == {"embed", "embed_prompt", "embed_norm", "predict_action"}
    masks, again, other = (TaskMasks.random(parameters, 4, 0.2, seed) for seed in (0, 0, 1))
    P = sum(p.numel() for p in parameters.values())
    assert masks.packed.shape == (4, -(-P // 8))
    assert masks.packed.dtype == np.uint8
    assert (masks.packed == again.packed).all()
    np.testing.assert_allclose(masks.masked_counts() / P, 0.2, atol=0.005)
    for a in range(4):
        assert (masks.of(a) != other.of(a)).float().mean() > 0.2
        for b in range(a):  # independent: they differ where one of two coins fell otherwise
            assert (masks.of(a) != masks.of(b)).float().mean() > 0.2
    for name, part, density in zip(
        parameters,
        masks.split(masks.of(0)),
        erk_densities({n: p.shape for n, p in parameters.items()}, 0.8).values(),
        strict=True,
    ):
        assert part.shape == parameters[name].shape
        assert float(part.float().mean()) == pytest.approx(density, abs=0.02), name


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_bits_come_back_as_they_were_put(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((2, size)) < 0.5
    masks = TaskMasks({"w": nn.Parameter(torch.zeros(size))}, np.packbits(rows, axis=1))
    assert (masks.of(1).numpy() == rows[1]).all()
    masks.put(1, torch.from_numpy(rows[0]))
    assert (masks.of(1) == masks.of(0)).all()
    assert (masks.masked_counts() == (~rows[0]).sum()).all()
