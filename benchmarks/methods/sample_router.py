"""M3DT with a router that weighs the experts per sample: it sees the mean of the tokens' h instead of each token's own.

    m_i = mean of h_j over the real tokens j ≤ i of prompt and window          w_i = softmax(router(m_i))

The published code takes the mean over the whole sequence, including later tokens and padding. A prediction in training then
depends on tokens that come after it, even on the action it should predict, which `act` cannot see. Ours is the mean over the
tokens so far, so that training and acting see the same. At the last state of a window, which `act` asks for, it is the mean
over the whole prompt and window. Otherwise the router is M3DT's (the published one has two layers here), so that only the level
differs.

The mean needs all tokens in the last block too, not only the queried ones, and the cache of a prompt also holds its sum of h.

Shape legend: as in `m3dt_agent.model.prompt_dt`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from m3dt_agent.data.batches import Window
from m3dt_agent.errors import ShapeError
from m3dt_agent.model import M3DT, ExpertChoice, PromptCache
from m3dt_agent.model.tokens import causal_mask
from m3dt_agent.model.transformer import ALL_TOKENS, Block, KeyValues
from m3dt_agent.training.run import Run

from .ablations import OtherThirdStage
from .base import Method


@dataclass(frozen=True, slots=True)
class SampleCache(PromptCache):
    """A `PromptCache` that also holds, for every layer, the sum of h over each prompt's real tokens."""

    sums: Tensor  # (L, B, D)

    def select(self, indices: Tensor | Sequence[int]) -> SampleCache:
        """As `PromptCache.select`."""
        rows = torch.as_tensor(indices, device=self.mask.device)
        return SampleCache(self.keys[:, rows], self.values[:, rows], self.mask[rows], self.sums[:, rows])

    def update(self, rows: Tensor | Sequence[int], other: PromptCache) -> SampleCache:
        """As `PromptCache.update`."""
        PromptCache.update(self, rows, other)
        self.sums[:, torch.as_tensor(rows, device=self.mask.device)] = cast("SampleCache", other).sums
        return self


class SampleRouted(M3DT):
    """M3DT whose mixture is weighed per sample. Every other choice of experts works as in M3DT."""

    def forward(self, window: Window, prompt: Window, experts: ExpertChoice = "none") -> Tensor:
        """Actions (B, T, act_dim), as `M3DT.forward`."""
        if experts != "mixture":
            return super().forward(window, prompt, experts)
        tokens = self._window_tokens(window, self.encode_prompt(prompt, experts))
        return self._predict(tokens[:, 1::3])

    def encode_prompt(self, prompt: Window, experts: ExpertChoice = "none") -> PromptCache:
        """As `M3DT.encode_prompt`, but a `SampleCache` for the mixture."""
        if experts != "mixture":
            return super().encode_prompt(prompt, experts)
        self._check(prompt, "prompt")
        self._choose(experts, len(prompt.mask))
        x = self.dropout(self.embed_prompt(prompt))  # (B, 3P, D)
        mask = causal_mask(prompt.mask, prompt.mask[:, :0], x.shape[1])  # (B, 1, 3P, 3P)
        real = prompt.mask.repeat_interleave(3, dim=1)  # (B, 3P)
        cached, sums = [], []
        for block in self._layers:
            cached.append(block.keys_values(x))
            x, total = _block(
                block, x, mask, None, real, torch.zeros_like(x[:, 0]), torch.zeros_like(real[:, 0], dtype=x.dtype)
            )
            sums.append(total)
        keys, values = (torch.stack(tensors) for tensors in zip(*cached, strict=True))  # (L, B, H, 3P, D/H)
        return SampleCache(keys, values, prompt.mask.clone(), torch.stack(sums))

    def act(self, window: Window, cache: PromptCache, experts: ExpertChoice = "none") -> Tensor:
        """The action (B, act_dim) of the last step of each window; equals `forward(...)[:, -1]`."""
        if experts != "mixture":
            return super().act(window, cache, experts)
        return self._predict(self._window_tokens(window, cache)[:, -1])

    @torch.no_grad()
    def router_weights(self, window: Window, prompt: Window) -> Tensor:
        """The weights (B, T, L, E) of the experts for each state token, from the tokens so far."""
        cache = self.encode_prompt(prompt, "mixture")
        weights: list[Tensor] = []
        hooks = [b.router.register_forward_hook(lambda _module, _inputs, output: weights.append(output)) for b in self._layers]
        try:
            self._window_tokens(window, cache)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([of_block[:, 1::3] for of_block in weights], dim=2)

    def _window_tokens(self, window: Window, cache: PromptCache) -> Tensor:
        """The last layer's tokens of a window that follows its prompt, (B, 3T - 1, D)."""
        self._check(window, "window")
        if not isinstance(cache, SampleCache) or len(cache.mask) != len(window.mask):
            raise ShapeError(
                f"window has {len(window.mask)} rows; its cache must come from encode_prompt(..., 'mixture') with as many rows"
            )
        x: Tensor = self.dropout(self._embed_window(window))  # (B, 3T - 1, D)
        P3 = cache.keys.shape[3]
        mask = causal_mask(cache.mask, window.mask, P3 + x.shape[1])[:, :, P3:]  # (B, 1, 3T - 1, 3P + 3T - 1)
        real = window.mask.repeat_interleave(3, dim=1)[:, : x.shape[1]]  # (B, 3T - 1)
        count = 3 * cache.mask.sum(1).to(x.dtype)  # (B,)
        for block, keys, values, total in zip(self._layers, cache.keys, cache.values, cache.sums, strict=True):
            x, _ = _block(block, x, mask, KeyValues(keys, values), real, total, count)
        return x


def _block(
    block: Block, x: Tensor, mask: Tensor, past: KeyValues | None, real: Tensor, total: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """A block's tokens (B, S, D) from x (B, S, D), and the sum of h over all real tokens so far, (B, D).

    real (B, S): which tokens are not padding. total (B, D), count (B,): sum and number of the real tokens before these.
    """
    x = x + block.dropout(block.attention(block.ln_1(x), mask, ALL_TOKENS, past))
    h: Tensor = block.ln_2(x)
    sums = total[:, None] + (h * real[..., None]).cumsum(1)  # (B, S, D)
    counts = count[:, None] + real.cumsum(1)  # (B, S)
    weights = block.router(sums / counts.clamp(min=1)[..., None])  # (B, S, E)
    update = block.ffn(h) + block.experts(h, weights)
    return torch.add(x, block.dropout(update)), sums[:, -1]


def per_sample(run: Run) -> Run:
    """The run with a model that starts with the same weights, but is routed per sample."""
    model = SampleRouted(run.model.config)
    model.load_state_dict(run.model.state_dict())
    return dataclasses.replace(run, model=model, parameters=model.router_tensors())


METHODS: Mapping[str, Method] = {"m3dt-sample-router": OtherThirdStage("gradient", per_sample)}
