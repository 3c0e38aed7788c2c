"""The authors' weights into our model.

Their names (`backbone/…`, `expert_<e>/…`, `router/…`) to ours; GPT-2's `Conv1D` weights are (in, out), `nn.Linear`'s (out, in):

    backbone/transformer.h.<i>.attn.c_attn (D, 3D)     blocks.<i>.attention.query, .key_value
    backbone/transformer.h.<i>.mlp.c_fc (D, 4D)        blocks.<i>.ffn.w_in
    expert_<e>/block_<i>.c_fc.weight (D, 4D)           blocks.<i>.experts.w_in[e]
    router/block_<i>.router.fc1, fc2, fc_new, fc3, fc4 blocks.<i>.router.layers.0 … 4, in this order

Three of their tensors are never used by their model and are left out: `wte`, `predict_state`, `predict_return`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from m3dt_agent.config import ModelConfig
from m3dt_agent.errors import ConfigError
from m3dt_agent.model import M3DT

_EMBEDDINGS = {"embed_return": "return_to_go", "embed_state": "state", "embed_action": "action"}
_ROUTER_LAYERS = ("fc1", "fc2", "fc_new", "fc3", "fc4")

Take = Callable[[str], Tensor]


def from_published(tensors: Mapping[str, Tensor], config: ModelConfig) -> M3DT:
    """The model of shape `config` with the authors' weights.

    `config.residual` decides how blocks with experts continue; the authors' outputs are reproduced with "published". What is no
    weight (`input/…`, `output/…`) is ignored, and so are experts and router where `config.n_experts` is 0.

    Raises:
        ConfigError: a weight is missing.
        ShapeError: weights of another shape than `config` says; the message names the tensor.
    """

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise ConfigError(f"published weights have no {name!r}; config: {config}")
        return tensors[name]

    ours = dict(_embeddings(take))
    for i in range(config.n_layers):
        ours.update(_block(take, i, config.embed_dim))
        if config.n_experts:
            ours.update(_experts(take, i, config.n_experts))
            ours.update(_router(take, i))
    model = M3DT(config)
    model.load_tensors(ours)
    return model


def _embeddings(take: Take) -> Iterator[tuple[str, Tensor]]:
    for theirs, ours in (("", "embed"), ("prompt_", "embed_prompt")):
        yield f"{ours}.timestep.weight", take(f"backbone/{theirs}embed_timestep.weight")
        for their_field, our_field in _EMBEDDINGS.items():
            yield from _pair(take, f"backbone/{theirs}{their_field}", f"{ours}.{our_field}")
    yield from _pair(take, "backbone/embed_ln", "embed_norm")
    yield from _pair(take, "backbone/transformer.ln_f", "final_norm")
    yield from _pair(take, "backbone/predict_action.0", "predict_action")


def _block(take: Take, i: int, embed_dim: int) -> Iterator[tuple[str, Tensor]]:
    theirs, ours = f"backbone/transformer.h.{i}", f"blocks.{i}"
    yield from _pair(take, f"{theirs}.ln_1", f"{ours}.ln_1")
    yield from _pair(take, f"{theirs}.ln_2", f"{ours}.ln_2")
    for field in ("weight", "bias"):
        fused = _transposed(take(f"{theirs}.attn.c_attn.{field}"))  # (3D, D) or (3D,): query, key, value
        yield f"{ours}.attention.query.{field}", fused[:embed_dim]
        yield f"{ours}.attention.key_value.{field}", fused[embed_dim:]
        yield f"{ours}.attention.out.{field}", _transposed(take(f"{theirs}.attn.c_proj.{field}"))
        yield f"{ours}.ffn.w_in.{field}", _transposed(take(f"{theirs}.mlp.c_fc.{field}"))
        yield f"{ours}.ffn.w_out.{field}", _transposed(take(f"{theirs}.mlp.c_proj.{field}"))


def _experts(take: Take, i: int, n_experts: int) -> Iterator[tuple[str, Tensor]]:
    fields = {"w_in": "c_fc.weight", "b_in": "c_fc.bias", "w_out": "c_proj.weight", "b_out": "c_proj.bias"}
    for ours, theirs in fields.items():
        yield f"blocks.{i}.experts.{ours}", torch.stack([take(f"expert_{e}/block_{i}.{theirs}") for e in range(n_experts)])


def _router(take: Take, i: int) -> Iterator[tuple[str, Tensor]]:
    for layer, name in enumerate(_ROUTER_LAYERS):
        yield from _pair(take, f"router/block_{i}.router.{name}", f"blocks.{i}.router.layers.{layer}")


def _pair(take: Take, theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
    for field in ("weight", "bias"):
        yield f"{ours}.{field}", take(f"{theirs}.{field}")


def _transposed(tensor: Tensor) -> Tensor:
    """A `Conv1D` weight (in, out) as (out, in); a bias as it is."""
    return tensor.T if tensor.ndim == 2 else tensor
