"""The mixture of experts: E feed-forward experts, stored as stacked tensors, and the router that weights them.

    y = Σₑ wₑ(h) · Eₑ(h),   Eₑ(h) = relu(h W_inₑ + b_inₑ) W_outₑ + b_outₑ ,   w = softmax(router(h))

Experts are computed in tiles: k experts at once are two batched products. In the mixture every expert sees all tokens, or those
of the rows that use it; in stage 2 each expert sees its own group of tokens:

    mixture   h (1, N, D) ─┐
    grouped   h (k, n, D) ─┴─► W_in (k, D, F) ──► relu ──► W_out (k, F, D) ──► (k, ·, D)

On a GPU one tile holds all experts. On a CPU a tile is sized so that its hidden activations fit the cache. With 48 experts of
the paper's model all hidden activations are 230 MB per block, and one wide product (N, D) x (D, E·F) waits for memory: it takes
1.7 times as long in float32 and 2.4 times in bfloat16 (measured: forward and backward of 1184 tokens on one core).

Experts that are not trained (in stage 3, and when acting) are computed by `_FrozenMixture`, which needs neither time nor memory
for their gradients. Products are in the precision in which the experts are stored, sums in float32. A `Routing` says which
experts are left out.

Shape legend: B rows (windows of the batch), S tokens of a row, N tokens, D embed_dim, E experts, K experts stacked in one run,
k experts in a tile, F = 4D.
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
"""Size of the hidden activations computed at once on a CPU: a third of the last-level cache of the machine it was tuned on."""
MIN_TILE = 2
"""Fewest experts in a tile: with one expert per tile, the batched products would become a loop over experts."""

Tile = tuple[slice, Tensor | None]
"""Consecutive experts, and the indices (n,) of the rows for which they are computed; None: all rows."""


class ExpertStack(nn.Module):
    """E experts, each of the shape of a feed-forward layer. A new expert's output layer is zero, so that it adds nothing."""

    def __init__(self, n_experts: int, embed_dim: int) -> None:
        super().__init__()
        hidden_dim = 4 * embed_dim
        self.w_in = nn.Parameter(torch.empty(n_experts, embed_dim, hidden_dim))  # (E, D, F)
        self.b_in = nn.Parameter(torch.zeros(n_experts, hidden_dim))  # (E, F)
        self.w_out = nn.Parameter(torch.zeros(n_experts, hidden_dim, embed_dim))  # (E, F, D)
        self.b_out = nn.Parameter(torch.zeros(n_experts, embed_dim))  # (E, D)
        nn.init.normal_(self.w_in, std=INIT_STD)

    def forward(self, h: Tensor, weights: Tensor, kept: Tensor | None = None) -> Tensor:
        """The sum over all experts of their weights (…, E) times their outputs for h (…, D); returns (…, D).

        kept: (B, E) bool, whether row b of h (B, S, D) uses expert e; None: all are used. Where it is False, weights must be 0.
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
        """The output of expert `experts[k]` for the k-th of K equal groups of rows; h (K·n, S, D) to (K·n, S, D)."""
        groups = h.reshape(len(experts), -1, h.shape[-1])  # (K, n·S, D)
        k = self._tile_size(groups[0])
        tiles = zip(torch.split(groups, k), *(torch.split(_take(p, experts), k) for p in self._stacks()), strict=True)
        return torch.cat([_feed_forward(*tile) for tile in tiles]).view_as(h)

    def lay_out_for_training(self) -> None:
        """Lays a frozen `w_in` out as (E, F, D) in memory.

        For the many tokens of a training step, products with it and with its transpose are then up to a fifth faster (measured
        in float32); for the few tokens of `act` they are slower.
        """
        if not self.w_in.requires_grad:
            self.w_in.data = self.w_in.data.mT.contiguous().mT

    def _frozen(self, h: Tensor, weights: Tensor, kept: Tensor | None) -> Tensor:
        """The output of `forward` for experts that are not trained; h (B, S, D), weights (B, S, E), kept (B, E)."""
        stacks = self._stacks()
        if kept is None or torch.compiler.is_compiling():  # who is kept is not known before; the others have weight 0
            tiles = self._tiles(h, [True] * len(self.w_in))
        elif torch.is_inference_mode_enabled() and bool((kept == kept[0]).all()):
            tiles = self._tiles(h, kept[0].tolist())
        else:
            tiles = tuple(_kept_tiles(kept))
        with _no_autocast(h.device):  # products are in the stacks' own precision, in backward too
            if torch.is_inference_mode_enabled():  # nothing has a gradient, and a decision is too short for autograd's own work
                return _mixture(h, weights, tiles, stacks)
            mixed: Tensor = _FrozenMixture.apply(h, weights, tiles, *stacks)  # type: ignore[no-untyped-call]
        return mixed

    def _stacks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.w_in, self.b_in, self.w_out, self.b_out

    def _are_frozen(self) -> bool:
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self._stacks()))

    def _tiles(self, h: Tensor, kept: list[bool]) -> tuple[Tile, ...]:
        """Tiles in which the kept experts are computed for every row of h (B, S, D). They are slices: no weight is copied."""
        k = self._tile_size(h.flatten(0, 1))
        runs = [[e for e, _ in run] for is_kept, run in itertools.groupby(enumerate(kept), lambda pair: pair[1]) if is_kept]
        return tuple((slice(e, min(e + k, run[-1] + 1)), None) for run in runs for e in range(run[0], run[-1] + 1, k))

    def _tile_size(self, tokens: Tensor) -> int:
        E, _, F = self.w_in.shape
        if torch.compiler.is_compiling():  # for any number of tokens
            return E
        return tile_size(E, len(tokens), F, self.w_in.device, self.w_in.element_size())


class Router(nn.Module):
    """Weights the experts for each token: an MLP D → 4D → 4D → 4D → 2D → E with ReLU between the layers, then softmax.

    top_k: only the k heaviest experts of a token get a weight, the others exactly 0; None: all experts get one.
    """

    def __init__(self, embed_dim: int, n_experts: int, top_k: int | None) -> None:
        super().__init__()
        D = embed_dim
        widths = (D, 4 * D, 4 * D, 4 * D, 2 * D, n_experts)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.top_k = top_k

    def forward(self, h: Tensor) -> Tensor:
        """The weights (…, E) of the experts for tokens h (…, D); they sum to 1."""
        for layer in self.layers[:-1]:
            h = layer(h).relu_()  # (…, 4D) three times, then (…, 2D)
        logits: Tensor = self.layers[-1](h)  # (…, E)
        if self.top_k is not None:
            heavy = logits.topk(self.top_k).indices
            light = torch.ones_like(logits, dtype=torch.bool).scatter(-1, heavy, 0)  # 0, because tracing knows no False here
            logits = logits.masked_fill(light, float("-inf"))
        return logits.softmax(-1)


class _FrozenMixture(torch.autograd.Function):
    """Σₑ wₑ · Eₑ(h) of experts that are not trained, with gradients of h (B, S, D) and w (B, S, E) only.

    Forward keeps the experts' outputs for the gradient of w, and their hidden activations for that of h, if h needs one. In the
    first block of stage 3 h needs none, and backward then has no products.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weights: Tensor, tiles: tuple[Tile, ...], w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor
    ) -> Tensor:
        saved: list[Tensor] = []
        keep = (ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[0])
        mixed = _mixture(h, weights, tiles, (w_in, b_in, w_out, b_out), saved, keep)
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


def _mixture(
    h: Tensor,
    weights: Tensor,
    tiles: tuple[Tile, ...],
    stacks: tuple[Tensor, ...],
    saved: list[Tensor] | None = None,
    keep: tuple[bool, bool] = (False, False),
) -> Tensor:
    """Σₑ wₑ · Eₑ(h) for h (B, S, D) and w (B, S, E). keep: whether each tile's outputs and hidden activations go to `saved`."""
    w_in, b_in, w_out, b_out = stacks
    x = h.to(w_in.dtype)
    mixed = torch.zeros(h.shape, device=h.device, dtype=torch.promote_types(h.dtype, torch.float32))
    for experts, rows in tiles:
        tokens = _rows(x, rows)[None].expand(len(w_in[experts]), -1, -1)  # (k, N, D)
        hidden = torch.baddbmm(b_in[experts, None], tokens, w_in[experts]).relu_()  # (k, N, F)
        outputs = torch.baddbmm(b_out[experts, None], hidden, w_out[experts])  # (k, N, D)
        _add_rows(mixed, rows, (_shares(weights, experts, rows) * outputs).sum(0))
        if saved is not None:
            saved += [kept for kept, wanted in zip((outputs, hidden), keep, strict=True) if wanted]
    return mixed


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    available = torch.amp.is_autocast_available(device.type)  # not on "meta", where costs are counted
    return torch.autocast(device.type, enabled=False) if available else contextlib.nullcontext()


def _kept_tiles(kept: Tensor) -> Iterator[Tile]:
    """One tile for each expert that at least one row of `kept` (B, E) uses."""
    for e, of_expert in enumerate(kept.T):
        rows = of_expert.nonzero()[:, 0]
        if len(rows):
            yield slice(e, e + 1), None if len(rows) == len(of_expert) else rows


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """The tokens (N, ·) of the given rows of x (B, S, ·); None: of all rows."""
    return (x if rows is None else x[rows]).flatten(0, 1)


def _shares(weights: Tensor, experts: slice, rows: Tensor | None) -> Tensor:
    """The weights of a tile's experts for its tokens, (k, N, 1), from weights (B, S, E)."""
    return _rows(weights[..., experts], rows).T[..., None]


def _add_rows(total: Tensor, rows: Tensor | None, tokens: Tensor) -> None:
    """Adds tokens (N, ·) to the given rows of total (B, S, ·), in place."""
    if rows is None:
        total += tokens.view(total.shape)
    else:
        total.index_add_(0, rows, tokens.view(-1, *total.shape[1:]).to(total.dtype))


def tile_size(n_experts: int, n_tokens: int, hidden_dim: int, device: torch.device, element_size: int = 4) -> int:
    """How many of `n_experts` experts are computed at once, each of hidden width `hidden_dim` and on `n_tokens` tokens."""
    if device.type != "cpu":
        return n_experts
    return min(max(TILE_BYTES // (n_tokens * hidden_dim * element_size), MIN_TILE), n_experts)


def _feed_forward(tokens: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """The outputs of k experts, each for its own tokens; (k, n, D) to (k, n, D)."""
    hidden = torch.baddbmm(b_in[:, None], tokens, w_in).relu_()  # (k, n, F)
    return torch.baddbmm(b_out[:, None], hidden, w_out)


def _take(stack: Tensor, experts: tuple[int, ...]) -> Tensor:
    """The given experts of a stacked parameter. Consecutive ones are a view, so that their gradient needs no scatter."""
    first, last = experts[0], experts[-1]
    if experts == tuple(range(first, last + 1)):
        return stack[first : last + 1]
    return stack[list(experts)]
