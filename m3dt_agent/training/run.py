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
    """Extra work at fixed points of every step; the base class does nothing.

    Checkpoints keep the hooks' `tensors`. Their work may depend only on these, the step and the weights: otherwise a run that
    is continued would differ from one that never stopped.
    """

    def before_forward(self, step: int, batch: Batch) -> None:
        """Called at the beginning of a step. `batch` holds this worker's windows, on the model's device."""

    def extra_loss(self) -> Tensor | float:
        """Called after the forward pass; returns a mean over this worker's windows that is added to the sum of the losses."""
        return 0.0

    def before_update(self) -> None:
        """Called after the gradients are summed over the workers and clipped, before the optimizer uses them."""

    def after_update(self, step: int) -> None:
        """Called after the weights are updated and the gradients are cleared."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the hooks need to continue; it has the same names at every step."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from what `tensors` returned."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a stage hands to the loop.

    name: with which the names of its checkpoints begin.
    model: all of it, with the parts that stay frozen.
    parameters: those that are trained, by name.
    samplers: K of them, one per expert of stage 2; one in the other stages.
    choice: which experts `M3DT.forward` uses.
    built_on: hashes of what must be the same if the run is to continue.
    public_files: makes the bank's files from the trained model.
    experts: in stage 2 the numbers in the bank of the K experts, else empty.
    conflict: measures the gradient conflict at a step; None: it is not measured.
    hooks: extra work in every step.
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
