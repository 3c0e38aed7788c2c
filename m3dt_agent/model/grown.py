"""Models of experts that a bank got later: they share its backbone, and bring what wider or longer tasks need besides.

    embed.state.weight   (D, 39 | 46)     the columns beyond the bar belong to the expert; so do, for wider actions or more
                                          timesteps, columns, rows and entries of the tensors in `WIDER`

The expert's file holds these parts as `wider.<name>`, beside its feed-forward layers. Nothing of the bank's own model changes.

Shape legend: D embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config import ModelConfig
from .moe import INIT_STD
from .prompt_dt import M3DT
from .tensors import check_all

WIDER = {
    "embed.state.weight": (1, "state_dim"),
    "embed.action.weight": (1, "act_dim"),
    "embed.timestep.weight": (0, "max_timesteps"),
    "embed_prompt.state.weight": (1, "state_dim"),
    "embed_prompt.action.weight": (1, "act_dim"),
    "embed_prompt.timestep.weight": (0, "max_timesteps"),
    "predict_action.weight": (0, "act_dim"),
    "predict_action.bias": (0, "act_dim"),
}
"""The tensors that grow with a field of ModelConfig, and the dimension in which they do."""


def new_parts(narrow: M3DT, wide: ModelConfig) -> dict[str, Tensor]:
    """What `narrow` lacks of a model of the shape `wide`, by name in an expert's file, initialised as all weights are."""
    shapes = {f"wider.{name}": shape for name, (_, shape) in _shapes(narrow, wide).items()}
    return {
        name: torch.zeros(shape) if name.endswith("bias") else torch.randn(shape) * INIT_STD for name, shape in shapes.items()
    }


def model_to_act(bank_model: M3DT, config: ModelConfig, tensors: Mapping[str, Tensor]) -> M3DT:
    """The model of one expert, in eval mode: the backbone of `bank_model` in the same memory, and the expert's own tensors.

    config: its shape, with n_experts=1. tensors: of the expert's file, which become part of the model.

    Raises:
        ConfigError: tensors are missing or unknown. ShapeError: one has another shape.
        InvalidValueError: one holds NaN or infinity.
    """
    with torch.device("meta"):
        model = M3DT(config)
    of_experts = model.expert_tensors()
    shapes = {name: parameter.shape[1:] for name, parameter in of_experts.items()}
    wider = _shapes(bank_model, config)
    shapes |= {f"wider.{name}": torch.Size(shape) for name, (_, shape) in wider.items()}
    check_all(tensors, shapes, "the expert")
    own = {name: tensors[name][None] for name in of_experts}
    backbone = bank_model.backbone_tensors()
    own |= {name: torch.cat((backbone[name].detach(), tensors[f"wider.{name}"]), dim) for name, (dim, _) in wider.items()}
    for name in dict(model.named_parameters()):
        place, _, leaf = name.rpartition(".")
        if name in own:
            setattr(model.get_submodule(place), leaf, nn.Parameter(own[name]))
        elif name in backbone:
            setattr(model.get_submodule(place), leaf, backbone[name])
    for block in model.blocks:
        del block.router  # one expert needs none
    return model.eval()


def widen_for_training(model: M3DT, config: ModelConfig, parts: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Widens `model` in place to the shape `config`; returns the new parts as parameters, stacked as those of one expert.

    parts: of `new_parts`. They are appended to the model's own tensors in every pass, which stay as they are and frozen.
    """
    found = {}
    for name, (dim, _) in _shapes(model, config).items():
        place, _, leaf = name.rpartition(".")
        module = model.get_submodule(place)
        parametrize.register_parametrization(module, leaf, _Appended(dim, parts[f"wider.{name}"]), unsafe=True)
        found[f"wider.{name}"] = module.get_parameter(f"parametrizations.{leaf}.original1")
    model.config = config
    return found


class _Appended(nn.Module):
    """A tensor that is its frozen part followed by a trained one of shape (1, …)."""

    def __init__(self, dim: int, part: Tensor) -> None:
        super().__init__()
        self._dim, self._part = dim, part

    def forward(self, frozen: Tensor, part: Tensor) -> Tensor:
        return torch.cat((frozen, part[0]), self._dim)

    def right_inverse(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` starts with: the tensor as it was, and the first values of the trained part."""
        return tensor, self._part[None]


def _shapes(narrow: M3DT, wide: ModelConfig) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The tensors of `narrow` that are too small for `wide`: dimension and shape of what is missing."""
    tensors, found = dict(narrow.named_parameters()), {}
    for name, (dim, field) in WIDER.items():
        more = getattr(wide, field) - getattr(narrow.config, field)
        if name in tensors and more > 0:  # a model may have no timesteps
            shape = list(tensors[name].shape)
            shape[dim] = more
            found[name] = dim, tuple(shape)
    return found
