"""What a stage hands to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..config import TrainConfig
from ..data.batches import Batch
from ..model import M3DT, ExpertChoice
from .shares import Sampler


class StepHooks:
    """What a run does besides, at three places of every step; as it stands, nothing. Its tensors are part of checkpoints.

    What it does may depend on the step, the weights and its tensors only, or a continued run differs from an uninterrupted one.
    """

    def before_forward(self, step: int, batch: Batch) -> None:
        """Weights are those of the step's beginning; `batch`, the windows that this worker holds, is on the model's device."""

    def extra_loss(self) -> Tensor | float:
        """What is added to the sum of the losses, a mean over windows; the forward pass is done."""
        return 0.0

    def before_update(self) -> None:
        """Gradients are there, all workers', and clipped."""

    def after_update(self, step: int) -> None:
        """Weights are updated, gradients gone."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it needs to continue; the same names at every step."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from what `tensors` gave."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a stage hands to the loop.

    name: of its checkpoints. model: holds everything, frozen parts included. parameters: what is trained. samplers: K of them,
    one per expert. experts: the bank's indices of the K experts (stage 2), else empty. choice: what `forward` is asked for.
    built_on: hashes of what must be the same to continue. public_files: what the bank gets from the trained model.
    conflict: measures gradient conflict at a step, where the stage can. hooks: what else is done at every step.
    """

    name: str
    config: TrainConfig
    model: M3DT
    parameters: Mapping[str, nn.Parameter]
    samplers: Sequence[Sampler]
    choice: ExpertChoice
    built_on: Mapping[str, str]
    public_files: Callable[[], dict[str, dict[str, Tensor]]]
    experts: tuple[int, ...] = ()
    conflict: Callable[[int], float] | None = None
    hooks: StepHooks = field(default_factory=StepHooks)
