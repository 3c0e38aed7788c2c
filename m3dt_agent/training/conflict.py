"""Gradient conflict between tasks (M3DT section 3): how little the tasks' gradients agree with their mean.

    conflict = 1 - mean_t cos(g_t, ḡ),   ḡ = mean_t g_t          0: all gradients are the same; near 1: they are orthogonal

g_t is the gradient of task t's loss over all trained parameters, without dropout. Every gradient is computed twice, once for ḡ
and once for its cosine: to keep those of 160 tasks, of 5.3M numbers each in the paper's model, would take 3.4 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..data.batches import Batch, BatchSampler
from ..model import M3DT, ExpertChoice

SMOOTHING = 0.8
"""Weight of the past in the exponential average of measurements, which covers about five. Our choice: the paper gives none."""

Gradients = Callable[[], Iterator[Tensor]]


def masked_losses(actions: Tensor, batch: Batch, n_losses: int, counts: Tensor | None = None) -> Tensor:
    """Mean squared error over real action dimensions of real steps, one per equal group of windows, (K,).

    actions: (B, T, act_dim), B a multiple of K.
    counts: (K,) the number of errors by which each group's sum is divided. If `batch` is a worker's share of a batch, these are
        the counts of the whole batch. None: those of `batch`.
    """
    errors = (actions.to(batch.targets.dtype) - batch.targets).square() * batch.action_mask
    return errors.view(n_losses, -1).sum(1) / (real_actions(batch.action_mask, n_losses) if counts is None else counts)


def real_actions(action_mask: Tensor, n_losses: int) -> Tensor:
    """How many action dimensions of each of K equal groups of windows are real, (K,); action_mask (B, T, act_dim)."""
    return action_mask.view(n_losses, -1).sum(1)


def task_gradients(
    model: M3DT,
    parameters: Mapping[str, nn.Parameter],
    sampler: BatchSampler,
    step: int,
    *,
    clip: float | None = None,
    experts: ExpertChoice = "none",
) -> Iterator[Tensor]:
    """The gradient of each task's loss, (P,) flat, in the sampler's task order.

    clip: scale each gradient down to this norm, as training does. experts: as `M3DT.forward` takes them; by default none.
    """
    first = next(iter(parameters.values()))
    training = model.training
    model.eval()
    try:
        for task in range(len(sampler.data.tasks)):
            batch = sampler.sample_task(task, step).to(first.device, first.dtype)
            loss = masked_losses(model(batch.window, batch.prompt, experts), batch, 1).sum()
            parts = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
            gradient = torch.cat([part.reshape(-1) for part in parts])
            if clip is not None:
                gradient *= (clip / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
            yield gradient
    finally:
        model.train(training)


def mean_gradient(gradients: Gradients) -> Tensor:
    """The mean gradient ḡ, (P,)."""
    total, count = torch.zeros(()), 0
    for gradient in gradients():
        total, count = (gradient if count == 0 else total.add_(gradient)), count + 1
    return total / count


def gradient_conflict(gradients: Gradients) -> float:
    """1 - the mean cosine between the gradients and their mean; the cosine of a zero gradient is 0."""
    mean = mean_gradient(gradients)
    cosines = [torch.nn.functional.cosine_similarity(gradient, mean, dim=0, eps=1e-30).item() for gradient in gradients()]
    return 1.0 - sum(cosines) / len(cosines)


def smoothed(conflicts: list[float]) -> list[float]:
    """The exponential average after each measurement, from the first one on."""
    averages: list[float] = []
    for value in conflicts:
        averages.append(value if not averages else SMOOTHING * averages[-1] + (1 - SMOOTHING) * value)
    return averages


def has_peaked(conflicts: list[float], patience: int) -> bool:
    """Whether the last `patience` measurements left the smoothed conflict below its peak (M3DT section 4.3)."""
    averages = smoothed(conflicts)
    return bool(averages) and len(averages) - 1 - averages.index(max(averages)) >= patience
