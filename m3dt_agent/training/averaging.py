"""A running average of the weights that a run trains, which is what its bank gets (`TrainConfig.ema`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of some parameters, in their dtype and on their device.

    After step t (from 0) the average moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights: the first steps
    count more, so that little of the initial weights is left even in a short run. The rule is the one of TensorFlow's
    `ExponentialMovingAverage(num_updates=t)`.

    parameters: by name. decay: in (0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def update(self, step: int) -> None:
        """Takes in the weights after step `step`."""
        weights = [parameter.detach() for parameter in self._parameters.values()]
        towards = 1.0 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), weights, towards)

    def tensors(self) -> dict[str, Tensor]:
        """The averages, by their parameters' names; the memory is this object's own."""
        return dict(self._average)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from what `tensors` returned."""
        for name, average in self._average.items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def write_to_parameters(self) -> None:
        """Overwrites the parameters with their averages."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._average[name])
