"""The mixture: E feed-forward experts stored stacked, and the router that weighs them.

    y = Σₑ wₑ(h) · Eₑ(h),   Eₑ(h) = relu(h W_inₑ + b_inₑ) W_outₑ + b_outₑ ,   w = softmax(router(h))

Experts are never called one by one: k of them, a tile, are two batched products. In the mixture every expert sees all tokens,
in stage 2 each its own group of tokens:

    mixture   h (1, N, D) ─┐
    grouped   h (k, n, D) ─┴─► W_in (k, D, F) ──► relu ──► W_out (k, F, D) ──► (k, ·, D)

On a GPU one tile holds all experts. On a CPU a tile is as large as its hidden activations fit the cache: with 48 experts of the
paper's model they are 230 MB per block in all, and one wide product (N, D) x (D, E·F) then waits for memory (measured, forward
and backward of 1184 tokens on one core: 1.7 times as long in float32, 2.4 times in bfloat16).

Shape legend: N tokens, n tokens of a group, D embed_dim, E experts, K experts stacked in one run, k experts in a tile, F = 4D.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

INIT_STD = 0.02
"""Standard deviation of every initial weight matrix (GPT-2)."""
TILE_ELEMENTS = 2_500_000
"""Hidden activations computed at once on a CPU: 10 MB of float32, a third of the last-level cache it was measured on."""
MIN_TILE = 2
"""Experts computed at once at least: a batched product of one is a loop over experts."""


class Experts(nn.Module):
    """E experts with the shape of a feed-forward layer. A new expert's output layer is zero: it adds exactly nothing."""

    def __init__(self, n_experts: int, embed_dim: int) -> None:
        super().__init__()
        hidden_dim = 4 * embed_dim
        self.w_in = nn.Parameter(torch.empty(n_experts, embed_dim, hidden_dim))  # (E, D, F)
        self.b_in = nn.Parameter(torch.zeros(n_experts, hidden_dim))  # (E, F)
        self.w_out = nn.Parameter(torch.zeros(n_experts, hidden_dim, embed_dim))  # (E, F, D)
        self.b_out = nn.Parameter(torch.zeros(n_experts, embed_dim))  # (E, D)
        nn.init.normal_(self.w_in, std=INIT_STD)

    def forward(self, h: Tensor, weights: Tensor) -> Tensor:
        """The sum over all experts of `weights` (…, E) times their outputs, h (…, D) to (…, D)."""
        tokens = h.reshape(-1, h.shape[-1])  # (N, D)
        shares = weights.reshape(-1, weights.shape[-1]).T[..., None]  # (E, N, 1)
        k = self._tile_size(len(tokens))
        mixed = torch.zeros_like(tokens)
        for share, *tile in zip(torch.split(shares, k), *(torch.split(p, k) for p in self._stacks()), strict=True):
            outputs = _feed_forward(tokens.expand(len(share), -1, -1), *tile)  # (k, N, D)
            mixed = mixed + (share * outputs).sum(0)
        return mixed.view_as(h)

    def grouped(self, h: Tensor, experts: tuple[int, ...]) -> Tensor:
        """Expert `experts[k]` alone on the k-th of K equal groups of rows, h (K·n, S, D) to (K·n, S, D)."""
        groups = h.reshape(len(experts), -1, h.shape[-1])  # (K, n·S, D)
        k = self._tile_size(groups.shape[1])
        tiles = zip(torch.split(groups, k), *(torch.split(_take(p, experts), k) for p in self._stacks()), strict=True)
        return torch.cat([_feed_forward(*tile) for tile in tiles]).view_as(h)

    def _stacks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.w_in, self.b_in, self.w_out, self.b_out

    def _tile_size(self, n_tokens: int) -> int:
        E, _, F = self.w_in.shape
        return tile_size(E, n_tokens, F, self.w_in.device)


class Router(nn.Module):
    """The weight of each expert for each token: an MLP D → 4D → 4D → 4D → 2D → E with ReLU between, then softmax.

    `top_k` keeps each token's k heaviest experts and gives the others exactly 0.
    """

    def __init__(self, embed_dim: int, n_experts: int, top_k: int | None) -> None:
        super().__init__()
        D = embed_dim
        widths = (D, 4 * D, 4 * D, 4 * D, 2 * D, n_experts)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.top_k = top_k

    def forward(self, h: Tensor) -> Tensor:
        """Expert weights (…, E), summing to 1, of tokens h (…, D)."""
        for layer in self.layers[:-1]:
            h = layer(h).relu_()  # (…, 4D) three times, then (…, 2D)
        logits: Tensor = self.layers[-1](h)  # (…, E)
        if self.top_k is not None:
            light = torch.ones_like(logits, dtype=torch.bool).scatter(-1, logits.topk(self.top_k).indices, False)
            logits = logits.masked_fill(light, float("-inf"))
        return logits.softmax(-1)


def tile_size(n_experts: int, n_tokens: int, hidden_dim: int, device: torch.device) -> int:
    """How many of `n_experts` experts of hidden width F are best computed at once, each on `n_tokens` tokens."""
    if device.type != "cpu":
        return n_experts
    return min(max(TILE_ELEMENTS // (n_tokens * hidden_dim), MIN_TILE), n_experts)


def _feed_forward(tokens: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Each of k experts on its own tokens, (k, n, D) to (k, n, D)."""
    hidden = torch.baddbmm(b_in[:, None], tokens, w_in).relu_()  # (k, n, F)
    return torch.baddbmm(b_out[:, None], hidden, w_out)


def _take(stack: Tensor, experts: tuple[int, ...]) -> Tensor:
    """Rows `experts` of a stacked parameter; consecutive experts are a view, whose gradient needs no scatter."""
    first, last = experts[0], experts[-1]
    if experts == tuple(range(first, last + 1)):
        return stack[first : last + 1]
    return stack[list(experts)]
