"""Which of the authors' tensors is which of ours: one description, used in both directions.

GPT-2's `Conv1D` weights are (in, out), `nn.Linear`'s (out, in):

    backbone/transformer.h.<i>.attn.c_attn (D, 3D)     blocks.<i>.attention.query, .key_value
    backbone/transformer.h.<i>.mlp.c_fc (D, 4D)        blocks.<i>.ffn.w_in
    expert_<e>/block_<i>.c_fc.weight (D, 4D)           blocks.<i>.experts.w_in[e]
    router/block_<i>.router.fc1, fc2, fc_new, fc3, fc4 blocks.<i>.router.layers.0 … 4, in this order

Their model has three tensors that it never uses: `wte`, `predict_state` and `predict_return`. Reading ignores them. Writing
adds zeros in their place, because the authors' `load_state_dict` is strict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from m3dt_agent.config import ModelConfig
from m3dt_agent.errors import ConfigError, ShapeError
from m3dt_agent.model import M3DT

_EMBEDDINGS = {"embed_return": "return_to_go", "embed_state": "state", "embed_action": "action"}
_EXPERT_FIELDS = {"c_fc.weight": "w_in", "c_fc.bias": "b_in", "c_proj.weight": "w_out", "c_proj.bias": "b_out"}
_ROUTER_LAYERS = ("fc1", "fc2", "fc_new", "fc3", "fc4")
_LAYER = re.compile(r"backbone/transformer\.h\.([A-Za-z0-9_]+)\.")
_EXPERT = re.compile(r"expert_([A-Za-z0-9_]+)/")

Views = Iterator[tuple[str, tuple[Tensor, ...]]]
"""Pairs: their name, and the views of our parameters that, joined along the last dimension, are their tensor."""


def from_published(tensors: Mapping[str, Tensor], config: ModelConfig, *, router: bool = True) -> M3DT:
    """The model of shape `config` with the authors' weights.

    `config.residual` decides how blocks with experts continue; "published" reproduces the authors' outputs. Entries that are
    not weights (`input/…`, `output/…`) are ignored, and so are experts and router if `config.n_experts` is 0.

    Args:
        router: False is for weights that have no router yet, and leaves the router as it is in a new model.

    Raises:
        ConfigError: a weight is missing, or the config is of a model that lacks a part of the authors'.
        ShapeError: a weight does not have the shape that `config` implies; the message names it.
    """
    model = M3DT(config)
    for name, views in _views(model):
        if router or not name.startswith("router/"):
            widths = [view.shape[-1] for view in views]
            shape = (*views[0].shape[:-1], sum(widths))
            for view, part in zip(views, torch.split(_take(tensors, name, shape), widths, dim=-1), strict=True):
                view.copy_(part)
    return model


def to_published(model: M3DT) -> dict[str, Tensor]:
    """The inverse of `from_published`: every tensor the authors' model expects, copied, in float32.

    Raises:
        ConfigError: the model lacks a part of the authors'.
    """
    D, state_dim = model.config.embed_dim, model.config.state_dim
    unused = {
        "transformer.wte.weight": (1, D),
        "predict_state.weight": (state_dim, D),
        "predict_state.bias": (state_dim,),
        "predict_return.weight": (1, D),
        "predict_return.bias": (1,),
    }
    device = next(model.parameters()).device
    zeros = {f"backbone/{name}": torch.zeros(shape, device=device) for name, shape in unused.items()}
    return zeros | {name: torch.cat(views, dim=-1).to(torch.float32) for name, views in _views(model)}


def published_config(
    tensors: Mapping[str, Tensor], *, n_heads: int = 8, context_length: int = 20, prompt_length: int = 5
) -> ModelConfig:
    """The config of the model that these weights belong to, with residual="published".

    The weights do not show the numbers of heads, context steps and prompt steps; the defaults are those of the published code
    (docs/architecture.md#sources-of-numbers).

    Raises:
        ConfigError: a tensor that shows the shape is missing, or no model can have that shape.
        ShapeError: such a tensor is not a matrix.
    """
    max_timesteps, embed_dim = _matrix_shape(tensors, "backbone/embed_timestep.weight")
    return ModelConfig(
        embed_dim,
        n_layers=len({found[1] for found in map(_LAYER.match, tensors) if found}),
        n_heads=n_heads,
        n_experts=len({found[1] for found in map(_EXPERT.match, tensors) if found}),
        context_length=context_length,
        prompt_length=prompt_length,
        max_timesteps=max_timesteps,
        state_dim=_matrix_shape(tensors, "backbone/embed_state.weight")[1],
        act_dim=_matrix_shape(tensors, "backbone/embed_action.weight")[1],
        residual="published",
    )


def published_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Name → shape of every tensor of the authors' model with this config."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in to_published(M3DT(config)).items()}


def _take(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    if name not in tensors:
        raise ConfigError(f"the published weights have no {name!r}")
    if shape is not None and tensors[name].shape != shape:
        raise ShapeError(f"published {name} must have shape {shape}; got {tuple(tensors[name].shape)}")
    return tensors[name]


def _matrix_shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    shape = _take(tensors, name).shape
    if len(shape) != 2:
        raise ShapeError(f"published {name} must have two dimensions; got {tuple(shape)}")
    return shape[0], shape[1]


def _views(model: M3DT) -> Views:
    if not model.config.has_published_parts:
        raise ConfigError(
            "the authors' model has returns, timesteps and a norm of embedded tokens; this one has "
            + ", ".join(f"{name}={getattr(model.config, name)}" for name in ("use_returns", "use_timesteps", "use_embed_norm"))
        )
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    yield from _embeddings(ours)
    for i in range(model.config.n_layers):
        yield from _block(ours, i)
        if model.config.n_experts:
            for e in range(model.config.n_experts):
                for theirs, field in _EXPERT_FIELDS.items():
                    yield f"expert_{e}/block_{i}.{theirs}", (ours[f"blocks.{i}.experts.{field}"][e],)
            for layer, theirs in enumerate(_ROUTER_LAYERS):
                yield from _pair(ours, f"router/block_{i}.router.{theirs}", f"blocks.{i}.router.layers.{layer}")


def _embeddings(ours: Mapping[str, Tensor]) -> Views:
    for prefix, embed in (("", "embed"), ("prompt_", "embed_prompt")):
        yield f"backbone/{prefix}embed_timestep.weight", (ours[f"{embed}.timestep.weight"],)
        for theirs, field in _EMBEDDINGS.items():
            yield from _pair(ours, f"backbone/{prefix}{theirs}", f"{embed}.{field}")
    yield from _pair(ours, "backbone/embed_ln", "embed_norm")
    yield from _pair(ours, "backbone/transformer.ln_f", "final_norm")
    yield from _pair(ours, "backbone/predict_action.0", "predict_action")


def _block(ours: Mapping[str, Tensor], i: int) -> Views:
    theirs, block = f"backbone/transformer.h.{i}", f"blocks.{i}"
    yield from _pair(ours, f"{theirs}.ln_1", f"{block}.ln_1")
    yield from _pair(ours, f"{theirs}.ln_2", f"{block}.ln_2")
    yield from _conv1d(ours, f"{theirs}.attn.c_attn", f"{block}.attention.query", f"{block}.attention.key_value")
    yield from _conv1d(ours, f"{theirs}.attn.c_proj", f"{block}.attention.out")
    yield from _conv1d(ours, f"{theirs}.mlp.c_fc", f"{block}.ffn.w_in")
    yield from _conv1d(ours, f"{theirs}.mlp.c_proj", f"{block}.ffn.w_out")


def _pair(ours: Mapping[str, Tensor], theirs: str, layer: str) -> Views:
    for field in ("weight", "bias"):
        yield f"{theirs}.{field}", (ours[f"{layer}.{field}"],)


def _conv1d(ours: Mapping[str, Tensor], theirs: str, *layers: str) -> Views:
    """One `Conv1D` of theirs, (in, out), that is one or more of our linear layers side by side."""
    yield f"{theirs}.weight", tuple(ours[f"{layer}.weight"].T for layer in layers)
    yield f"{theirs}.bias", tuple(ours[f"{layer}.bias"] for layer in layers)
