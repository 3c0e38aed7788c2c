"""The model written in the most straightforward way: the yardstick of `benchmarks.perf.model` and `acting`.

Experts are modules in a list, and a Python loop calls them one by one. Every token passes through every layer, attention is the
softmax of a matrix, and `act` recomputes prompt and window. Frozen parts get no gradients. The weights are those of our model,
so the outputs must be equal; `setting.Setting.baseline` checks this before anything is measured.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn

from m3dt_agent.data.batches import Window
from m3dt_agent.model import M3DT


class Expert(nn.Module):
    """D → 4D → D with ReLU; also the backbone's feed-forward layer."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(embed_dim, 4 * embed_dim)
        self.second = nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, h: Tensor) -> Tensor:
        return self.second(self.first(h).relu())


class BaselineBlock(nn.Module):
    def __init__(self, model: M3DT, index: int) -> None:
        super().__init__()
        source = model.blocks[index]
        D, E = model.config.embed_dim, model.config.n_experts
        self.n_heads, self.rate = model.config.n_heads, model.config.dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.ffn = Expert(D)
        self.experts = nn.ModuleList(Expert(D) for _ in range(E))
        self.dropout = nn.Dropout(self.rate)
        for name in ("ln_1", "ln_2"):
            getattr(self, name).load_state_dict(getattr(source, name).state_dict())
        attention = source.attention
        self.out.load_state_dict(attention.out.state_dict())
        with torch.no_grad():
            for field in ("weight", "bias"):
                fused = torch.cat((getattr(attention.query, field), getattr(attention.key_value, field)))
                getattr(self.qkv, field).copy_(fused)
            _copy_linear(self.ffn.first, source.ffn.w_in.weight, source.ffn.w_in.bias)
            _copy_linear(self.ffn.second, source.ffn.w_out.weight, source.ffn.w_out.bias)
            for e, expert in enumerate(self.experts):
                _copy_linear(expert.first, source.experts.w_in[e].T, source.experts.b_in[e])
                _copy_linear(expert.second, source.experts.w_out[e].T, source.experts.b_out[e])
        if E:
            widths = (D, 4 * D, 4 * D, 4 * D, 2 * D, E)
            layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
            self.router = nn.Sequential(*layers[:-1])
            for ours, theirs in zip(source.router.layers, self.router[::2], strict=True):
                theirs.load_state_dict(ours.state_dict())

    def forward(self, x: Tensor, mask: Tensor, choice: str | int) -> Tensor:
        B, S, D = x.shape
        q, k, v = (t.view(B, S, self.n_heads, -1).transpose(1, 2) for t in self.qkv(self.ln_1(x)).chunk(3, -1))
        scores = (q @ k.mT / math.sqrt(D // self.n_heads)).masked_fill(~mask, float("-inf"))
        attended = self.dropout(scores.softmax(-1)) @ v
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(B, S, D)))
        h = self.ln_2(x)
        update = self.ffn(h)
        if choice == "mixture":
            weights = self.router(h).softmax(-1)
            for e, expert in enumerate(self.experts):
                update = update + weights[..., e : e + 1] * expert(h)
        elif choice != "none":
            update = update + self.experts[choice](h)
        return x + self.dropout(update)


class BaselineM3DT(nn.Module):
    """Our model's weights in the straightforward implementation (`residual="standard"`, dense routing)."""

    def __init__(self, model: M3DT) -> None:
        super().__init__()
        self.embed, self.embed_prompt, self.embed_norm = (
            copy.deepcopy(m) for m in (model.embed, model.embed_prompt, model.embed_norm)
        )
        self.final_norm, self.predict_action = copy.deepcopy(model.final_norm), copy.deepcopy(model.predict_action)
        self.blocks = nn.ModuleList(BaselineBlock(model, i) for i in range(model.config.n_layers))
        self.dropout = nn.Dropout(model.config.dropout)

    def forward(self, window: Window, prompt: Window, experts: str | int = "none") -> Tensor:
        """Actions (B, T, act_dim), as `M3DT.forward`."""
        x = self.dropout(torch.cat((self.embed_prompt(prompt), self.embed_norm(self.embed(window))), dim=1))
        real = torch.cat((prompt.mask, window.mask), dim=1).repeat_interleave(3, dim=1)
        S = real.shape[1]
        causal = torch.ones(S, S, dtype=torch.bool, device=real.device).tril()
        mask = ((causal & real[:, None]) | torch.eye(S, dtype=torch.bool, device=real.device))[:, None]
        for block in self.blocks:
            x = block(x, mask, experts)
        states = x[:, 3 * prompt.mask.shape[1] + 1 :: 3]
        return self.predict_action(self.final_norm(states)).tanh()

    def act(self, window: Window, prompt: Window, experts: str | int = "none") -> Tensor:
        """The last step's action (B, act_dim); everything is recomputed."""
        return self(window, prompt, experts)[:, -1]


def _copy_linear(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
