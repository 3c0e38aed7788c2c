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
    """Extra work at fixed points of every step; the base class does nothing. Checkpoints include its tensors.

    The work may depend only on the step, the weights and these tensors; otherwise a continued run would differ from an
    uninterrupted one.
    """

    def before_forward(self, step: int, batch: Batch) -> None:
        """Called at the beginning of a step. `batch` holds this worker's windows, on the model's device."""

    def extra_loss(self) -> Tensor | float:
        """What is added to the sum of the losses, as a mean over windows; called after the forward pass."""
        return 0.0

    def before_update(self) -> None:
        """Called when gradients are summed over workers and clipped."""

    def after_update(self, step: int) -> None:
        """Called when weights are updated and gradients are gone."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the hooks need to continue; the same names at every step."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from what `tensors` returned."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a stage hands to the loop.

    name: of its checkpoints. model: everything, including frozen parts. parameters: those that are trained, by name. samplers:
    K of them, one per expert. choice: which experts `forward` uses. built_on: hashes of what must be the same to continue.
    public_files: makes the bank's files from the trained model. experts: the bank's indices of the K experts in stage 2, else
    empty. conflict: measures gradient conflict at a step; None if the stage does not. hooks: extra work in every step.
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
