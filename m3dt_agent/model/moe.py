"""The mixture: E feed-forward experts stored stacked, and the router that weighs them.

    y = Σₑ wₑ(h) · Eₑ(h),   Eₑ(h) = relu(h W_inₑ + b_inₑ) W_outₑ + b_outₑ ,   w = softmax(router(h))

k experts, a tile, are two batched products. In the mixture every expert sees all tokens, or those of the rows that keep it; in
stage 2 each sees its own group of tokens:

    mixture   h (1, N, D) ─┐
    grouped   h (k, n, D) ─┴─► W_in (k, D, F) ──► relu ──► W_out (k, F, D) ──► (k, ·, D)

On a GPU one tile holds all experts. On a CPU a tile is as large as its hidden activations fit the cache: with 48 experts of the
paper's model they are 230 MB per block in all, and one wide product (N, D) x (D, E·F) then waits for memory (measured, forward
and backward of 1184 tokens on one core: 1.7 times as long in float32, 2.4 times in bfloat16).

Experts that are not trained (stage 3, acting) go through `_FrozenMixture`: no gradient of theirs is computed or kept room for,
products are in the precision they are stored in, sums in float32. `Routing` says which of them are left out.

Shape legend: B rows, S tokens of a row, N tokens, D embed_dim, E experts, K experts stacked in one run, k experts in a tile,
F = 4D.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

INIT_STD = 0.02
"""Standard deviation of every initial weight matrix (GPT-2)."""
TILE_BYTES = 10_000_000
"""Hidden activations computed at once on a CPU: a third of the last-level cache it was measured on."""
MIN_TILE = 2
"""Experts computed at once at least: a batched product of one is a loop over experts."""

Tile = tuple[slice, Tensor | None]
"""Consecutive experts, and the rows (n,) that they are computed for; None: all."""


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
        self._compact: tuple[Any, tuple[Tensor, ...]] = None, ()  # of what, and copies of its stacks

    def forward(self, h: Tensor, weights: Tensor, kept: Tensor | None = None) -> Tensor:
        """The sum over all experts of `weights` (…, E) times their outputs, h (…, D) to (…, D).

        kept (B, E) bool: the experts that row b of h (B, S, D) and weights (B, S, E) uses; where False, weights must be 0.
        """
        if self._are_frozen():
            rows = h[:, None] if h.ndim == 2 else h  # (B, S, D)
            return self._frozen(rows, weights.view(*rows.shape[:-1], -1), kept).view_as(h)
        tokens = h.reshape(-1, h.shape[-1])  # (N, D)
        of_experts = weights.reshape(-1, weights.shape[-1]).T[..., None]  # (E, N, 1)
        k = self._tile_size(tokens)
        mixed = torch.zeros_like(tokens)
        for share, *tile in zip(torch.split(of_experts, k), *(torch.split(p, k) for p in self._stacks()), strict=True):
            outputs = _feed_forward(tokens.expand(len(share), -1, -1), *tile)  # (k, N, D)
            mixed = mixed + (share * outputs).sum(0)
        return mixed.view_as(h)

    def grouped(self, h: Tensor, experts: tuple[int, ...]) -> Tensor:
        """Expert `experts[k]` alone on the k-th of K equal groups of rows, h (K·n, S, D) to (K·n, S, D)."""
        groups = h.reshape(len(experts), -1, h.shape[-1])  # (K, n·S, D)
        k = self._tile_size(groups[0])
        tiles = zip(torch.split(groups, k), *(torch.split(_take(p, experts), k) for p in self._stacks()), strict=True)
        return torch.cat([_feed_forward(*tile) for tile in tiles]).view_as(h)

    def lay_out_for_training(self) -> None:
        """Lets `w_in` be (E, F, D) in memory, if it is frozen: with a training step's many tokens, products with it and with
        its transpose are up to a fifth faster (measured in float32; with the few of `act` they are slower)."""
        if not self.w_in.requires_grad:
            self.w_in.data = self.w_in.data.mT.contiguous().mT

    def _frozen(self, h: Tensor, weights: Tensor, kept: Tensor | None) -> Tensor:
        """The mixture of experts that are not trained; h (B, S, D), weights (B, S, E), kept (B, E)."""
        stacks: tuple[Tensor, ...] = self._stacks()
        if kept is None:
            tiles = self._tiles(h, len(self.w_in))
        elif torch.is_inference_mode_enabled() and bool((kept == kept[0]).all()):
            experts = kept[0].nonzero()[:, 0]
            stacks, weights, tiles = self._compacted(experts), weights[..., experts], self._tiles(h, len(experts))
        else:
            tiles = tuple(_kept_tiles(kept))
        with _no_autocast(h.device):  # the stacks' own precision decides, in backward too
            mixed: Tensor = _FrozenMixture.apply(h, weights, tiles, *stacks)  # type: ignore[no-untyped-call]
        return mixed

    def _compacted(self, experts: Tensor) -> tuple[Tensor, ...]:
        """The stacks of these experts alone, (k, …); copied when others are asked for than last time, or weights changed."""
        state = experts.tolist(), [(p.data_ptr(), p._version) for p in self._stacks()]
        if self._compact[0] != state:
            w_in, b_in, w_out, b_out = self._stacks()
            self._compact = state, (w_in[experts], b_in[experts], w_out[experts], b_out[experts])
        return self._compact[1]

    def _stacks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.w_in, self.b_in, self.w_out, self.b_out

    def _are_frozen(self) -> bool:
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self._stacks()))

    def _tiles(self, h: Tensor, n_experts: int) -> tuple[Tile, ...]:
        """All of `n_experts` for every row of h (B, S, D)."""
        k = self._tile_size(h.flatten(0, 1))
        return tuple((slice(e, e + k), None) for e in range(0, n_experts, k))

    def _tile_size(self, tokens: Tensor) -> int:
        E, _, F = self.w_in.shape
        return tile_size(E, len(tokens), F, self.w_in.device, self.w_in.element_size())


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


class _FrozenMixture(torch.autograd.Function):
    """Σₑ wₑ · Eₑ(h) of experts that are not trained: gradients of h (B, S, D) and w (B, S, E) only.

    For backward are kept: each expert's output, for w, and its hidden activations, for h where h has a gradient at all (in the
    first block of stage 3 it has none, and backward is free of products).
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weights: Tensor, tiles: tuple[Tile, ...], w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor
    ) -> Tensor:
        x = h.to(w_in.dtype)
        mixed = torch.zeros(h.shape, device=h.device, dtype=torch.promote_types(h.dtype, torch.float32))
        saved: list[Tensor] = []
        for experts, rows in tiles:
            tokens = _rows(x, rows)[None].expand(len(w_in[experts]), -1, -1)  # (k, N, D)
            hidden = torch.baddbmm(b_in[experts, None], tokens, w_in[experts]).relu_()  # (k, N, F)
            outputs = torch.baddbmm(b_out[experts, None], hidden, w_out[experts])  # (k, N, D)
            _add_rows(mixed, rows, (_shares(weights, experts, rows) * outputs).sum(0))
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                saved += [outputs, hidden] if ctx.needs_input_grad[0] else [outputs]
        ctx.tiles = tiles
        ctx.save_for_backward(weights, w_in, w_out, *saved)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, w_in, w_out, *saved = ctx.saved_tensors
        of_weights = torch.zeros_like(weights)
        of_h = torch.zeros_like(grad) if ctx.needs_input_grad[0] else None
        kept = iter(saved)
        for experts, rows in ctx.tiles:
            g, outputs = _rows(grad, rows), next(kept)  # (N, D), (k, N, D)
            share = (g * outputs).sum(-1)  # (k, N)
            _add_rows(of_weights[..., experts], rows, share.T)
            if of_h is not None:
                hidden = next(kept)
                passed = (_shares(weights, experts, rows) * g).to(w_out.dtype) @ w_out[experts].mT  # (k, N, F)
                passed = torch.ops.aten.threshold_backward(passed, hidden, 0)
                _add_rows(of_h, rows, (passed @ w_in[experts].mT).sum(0, dtype=of_h.dtype))
        return of_h, of_weights, None, None, None, None, None


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    available = torch.amp.is_autocast_available(device.type)  # not on "meta", where costs are counted
    return torch.autocast(device.type, enabled=False) if available else contextlib.nullcontext()


def _kept_tiles(kept: Tensor) -> Iterator[Tile]:
    """One tile per expert that some row of `kept` (B, E) uses."""
    for e, of_expert in enumerate(kept.T):
        rows = of_expert.nonzero()[:, 0]
        if len(rows):
            yield slice(e, e + 1), None if len(rows) == len(of_expert) else rows


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Tokens (N, ·) of the rows (B, S, ·)."""
    return (x if rows is None else x[rows]).flatten(0, 1)


def _shares(weights: Tensor, experts: slice, rows: Tensor | None) -> Tensor:
    """The weights (B, S, E) of a tile's experts for its tokens, (k, N, 1)."""
    return _rows(weights[..., experts], rows).T[..., None]


def _add_rows(total: Tensor, rows: Tensor | None, tokens: Tensor) -> None:
    """Adds tokens (N, ·) to the rows of total (B, S, ·) in place."""
    if rows is None:
        total += tokens.view(total.shape)
    else:
        total.index_add_(0, rows, tokens.view(-1, *total.shape[1:]).to(total.dtype))


def tile_size(n_experts: int, n_tokens: int, hidden_dim: int, device: torch.device, element_size: int = 4) -> int:
    """How many of `n_experts` experts of hidden width F are best computed at once, each on `n_tokens` tokens."""
    if device.type != "cpu":
        return n_experts
    return min(max(TILE_BYTES // (n_tokens * hidden_dim * element_size), MIN_TILE), n_experts)


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
