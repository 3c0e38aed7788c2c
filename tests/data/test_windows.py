"""Windows and batches: parts share memory, copies do not."""

from __future__ import annotations

import numpy as np
import torch

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.windows import Batch, empty_window

CONFIG = ModelConfig.preset("tiny", max_timesteps=50)


def test_a_part_of_a_batch_is_the_same_memory():
    window, prompt = empty_window(4, 3, CONFIG).to_window(), empty_window(4, 2, CONFIG).to_window()
    batch = Batch(torch.arange(4), window, prompt, torch.zeros(4, 3, CONFIG.act_dim, dtype=torch.bool))
    part = batch.part(range(1, 3))
    assert part.tasks.tolist() == [1, 2]
    part.window.states.add_(1.0)
    part.prompt.timesteps.add_(7)
    assert window.states[:, 0, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert prompt.timesteps[:, 0].tolist() == [0, 7, 7, 0]


def test_taken_windows_are_copies_and_arrays_are_not():
    arrays = empty_window(3, 2, CONFIG)
    arrays.timesteps[:] = np.arange(3)[:, None]
    taken = arrays.take(np.array([2, 0, 2]))
    assert taken.timesteps[:, 0].tolist() == [2, 0, 2]
    taken.mask[:] = True
    assert not arrays.mask.any()
    arrays.to_window().to_arrays().mask[:] = True
    assert arrays.mask.all()
