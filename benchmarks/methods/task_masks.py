"""Which of a model's weights each task uses: a mask of one bit per weight for every task, as in HarmoDT.

Shape legend: N tasks, P entries of the masked parameters, flat and in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3dt_agent.data.batches import derive_seed
from m3dt_agent.model import M3DT

_UNMASKED = ("embed", "embed_prompt", "embed_norm", "predict_action")


class TaskMasks:
    """Which entries of `parameters` each task uses. packed: (N, ⌈P/8⌉) uint8, with the first of eight entries in the top
    bit."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], packed: NDArray[np.uint8]) -> None:
        self.parameters, self.packed = parameters, packed
        self.sizes = [parameter.numel() for parameter in parameters.values()]

    @classmethod
    def random(cls, parameters: Mapping[str, nn.Parameter], n_tasks: int, sparsity: float, seed: int) -> TaskMasks:
        """Draws independent masks: every entry is active with the ERK density of its parameter."""
        densities = erk_densities({name: p.shape for name, p in parameters.items()}, 1 - sparsity)
        chances = np.repeat(list(densities.values()), [p.numel() for p in parameters.values()]).astype(np.float32)  # (P,)
        rows = []
        for task in range(n_tasks):
            rng = np.random.default_rng(derive_seed(seed, "backbone", 0, task, "mask"))
            rows.append(np.packbits(rng.random(len(chances), np.float32) < chances))
        return cls(parameters, np.stack(rows))

    def of(self, task: int) -> Tensor:
        """The mask of a task, (P,) bool, on the device of the parameters."""
        device = next(iter(self.parameters.values())).device
        row = torch.from_numpy(self.packed[task]).to(device)
        bits = (row[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=device)) & 1  # (⌈P/8⌉, 8)
        return bits.flatten()[: sum(self.sizes)].bool()

    def put(self, task: int, mask: Tensor) -> None:
        """Replaces the mask of a task by (P,) bool."""
        self.packed[task] = np.packbits(mask.cpu().numpy())

    def split(self, mask: Tensor) -> list[Tensor]:
        """A mask (P,) as one tensor for each parameter, in the parameter's shape."""
        parts = zip(torch.split(mask, self.sizes), self.parameters.values(), strict=True)
        return [part.view_as(parameter) for part, parameter in parts]

    def masked_counts(self) -> NDArray[np.int64]:
        """How many entries each task does not use, (N,)."""
        return np.array([int((~self.of(task)).sum()) for task in range(len(self.packed))])


def maskable(model: M3DT) -> dict[str, nn.Parameter]:
    """The parameters that masks apply to: those of the blocks and of the last norm."""
    return {name: parameter for name, parameter in model.named_parameters() if name.split(".")[0] not in _UNMASKED}


@torch.no_grad()
def apply_mask(parameters: Sequence[nn.Parameter], masks: Sequence[Tensor]) -> None:
    """Sets masked entries of the parameters to 0."""
    for parameter, mask in zip(parameters, masks, strict=True):
        parameter.mul_(mask)


def erk_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Erdős–Rényi-kernel densities (Evci et al. 2020, arXiv 1911.11134), `density` over all tensors.

    The density of a tensor is proportional to Σ dims / Π dims. A tensor whose density would exceed 1 gets 1, and the others
    make up for it; in models of useful size this holds for biases and norms.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    scores = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        sparse = [name for name in shapes if name not in dense]
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / sum(scores[name] * sizes[name] for name in sparse)
        highest = max(scores[name] for name in sparse)
        if scale * highest <= 1:
            return {name: scale * scores[name] if name in sparse else 1.0 for name in shapes}
        dense |= {name for name in sparse if scores[name] == highest}
    return dict.fromkeys(shapes, 1.0)
