"""GPT-2 blocks (pre-norm, ReLU, no positional embedding) whose feed-forward part may carry experts.

    x = x + attention(LN₁(x))
    h = LN₂(x)
    x = base + FFN(h)                          backbone
    x = base + FFN(h) + Eₑ(h)                  one expert, weight 1 (stage 2)
    x = base + FFN(h) + Σₑ wₑ(h) · Eₑ(h)        mixture (stage 3), of all experts or of those that a `Routing` keeps

`base` is x. With `residual="published"`, `base` is h in blocks that use experts, as in the authors' code.

A block computes outputs only for the tokens selected by `queries`; all tokens serve as keys and values. `past` holds the keys
and values of earlier tokens, which are then not computed again.

Shape legend: B batch, S tokens, Q query tokens, D embed_dim, H heads, F hidden width (4D; see `ffn_multiple`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..config import ModelConfig
from .dropout import Dropout
from .moe import ExpertStack, Router
from .routing import Routing, block_usage

Choice = Literal["none", "mixture"] | Routing | tuple[int, ...]
"""Which experts a block adds: none, the mixture of all, the mixture of a row's heaviest, or one for each of K equal groups."""

ALL_TOKENS = slice(None)
_LEAST_MASS = 1e-6
"""Lower bound of the weight by which the kept experts of a token are divided to renormalise them."""


class KeyValues(NamedTuple):
    """The keys and values that attention computes from tokens."""

    keys: Tensor  # (B, H, S, D/H)
    values: Tensor  # (B, H, S, D/H)


class Attention(nn.Module):
    """Multi-head attention of the query tokens over all tokens and the past, with dropout on its probabilities (as GPT-2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = Dropout(config.dropout)
        self.query = nn.Linear(config.embed_dim, config.embed_dim)
        self.key_value = nn.Linear(config.embed_dim, 2 * config.embed_dim)
        self.out = nn.Linear(config.embed_dim, config.embed_dim)

    def keys_values(self, h: Tensor) -> KeyValues:
        """Computes the keys and values of tokens h (B, S, D)."""
        keys, values = self.key_value(h).chunk(2, dim=-1)  # (B, S, D) each
        return KeyValues(self._split_heads(keys), self._split_heads(values))

    def shared_keys_values(self, h: Tensor, of: Tensor) -> KeyValues:
        """The keys and values of tokens h (P, S, D), those of row `of[b]` for each of B rows; of (B,) int64."""
        key_value = self.key_value(h)  # (P, S, 2D)
        # an embedding, because its gradient is summed in a fixed order
        rows = F.embedding(of, key_value.flatten(1)).view(-1, *key_value.shape[1:])  # (B, S, 2D)
        keys, values = rows.chunk(2, dim=-1)
        return KeyValues(self._split_heads(keys), self._split_heads(values))

    def forward(self, h: Tensor, mask: Tensor, queries: slice, past: KeyValues | None) -> Tensor:
        """Maps tokens h (B, S, D) to (B, Q, D); `mask` (B, 1, Q, past + S) is True where a query may look."""
        q = self._split_heads(self.query(h[:, queries]))  # (B, H, Q, D/H)
        k, v = self.keys_values(h)  # (B, H, S, D/H)
        if past is not None:
            k = torch.cat((past.keys.to(k.dtype), k), dim=2)  # (B, H, past + S, D/H)
            v = torch.cat((past.values.to(v.dtype), v), dim=2)
        out: Tensor = self.out(self._attend(q, k, v, mask).transpose(1, 2).flatten(2))  # (B, Q, D)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """The attention-weighted mean of the values for every query, (B, H, Q, D/H)."""
        if self.dropout.needs_mask(q.device):
            bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
            scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias  # (B, H, Q, past + S)
            return torch.matmul(self.dropout(scores.softmax(-1)), v)
        rate = self.dropout.rate if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.n_heads, -1).transpose(1, 2)  # (B, S, D) to (B, H, S, D/H)


class FeedForward(nn.Module):
    """A feed-forward layer: linear D → F, ReLU, linear F → D."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(embed_dim, hidden_dim)
        self.w_out = nn.Linear(hidden_dim, embed_dim)

    def forward(self, h: Tensor) -> Tensor:
        """Maps h (…, D) to (…, D)."""
        out: Tensor = self.w_out(self.w_in(h).relu_())
        return out


class Block(nn.Module):
    """One transformer block. It has experts and a router unless `config.n_experts` is 0."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, E = config.embed_dim, config.n_experts
        self.ln_1 = nn.LayerNorm(D)
        self.attention = Attention(config)
        self.ln_2 = nn.LayerNorm(D)
        self.ffn = FeedForward(D, config.ffn_multiple * D)
        if E:
            self.experts = ExpertStack(E, D)
            self.router = Router(D, E, config.top_k)
        self.dropout = Dropout(config.dropout)
        self.continues_from_norm = config.residual == "published"
        self.usage: tuple[Tensor, Tensor] | None = None  # of the last pass with a `Routing`; see `block_usage`

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"usage": None}  # a copy has made no pass yet

    def keys_values(self, x: Tensor) -> KeyValues:
        """Computes the keys and values of this block's attention for tokens x (B, S, D)."""
        return self.attention.keys_values(self.ln_1(x))

    def shared_keys_values(self, x: Tensor, of: Tensor) -> KeyValues:
        """The same of tokens x (P, S, D) that rows share: those of row `of[b]` for each of B rows; of (B,) int64."""
        return self.attention.shared_keys_values(self.ln_1(x), of)

    def forward(
        self, x: Tensor, mask: Tensor, choice: Choice, queries: slice = ALL_TOKENS, past: KeyValues | None = None
    ) -> Tensor:
        """Maps tokens x (B, S, D) to (B, Q, D); `mask` (B, 1, Q, past + S) is True where a query may look."""
        # The last query may look at every real token, so its row of the mask tells which queries are no padding.
        real = mask[:, 0, -1, -x.shape[1] :][:, queries]  # (B, Q)
        x = x[:, queries] + self.dropout(self.attention(self.ln_1(x), mask, queries, past))  # (B, Q, D)
        h: Tensor = self.ln_2(x)  # (B, Q, D)
        base, update = x, self.ffn(h)
        if choice != "none":
            base = h if self.continues_from_norm else x
            update = update + (self.experts.grouped(h, choice) if isinstance(choice, tuple) else self._mix(h, choice, real))
        return torch.add(base, self.dropout(update))

    def _mix(self, h: Tensor, choice: Literal["mixture"] | Routing, real: Tensor) -> Tensor:
        """The experts' outputs for tokens h (B, Q, D), weighted by the router and summed; `real` (B, Q): not padding."""
        weights = self.router(h)  # (B, Q, E)
        if choice == "mixture":
            dense: Tensor = self.experts(h, weights)
            return dense
        kept = choice.kept(weights, real)  # (B, E)
        self.usage = block_usage(weights, kept, real)
        weights = weights * kept[:, None]
        mixed: Tensor = self.experts(h, weights / weights.sum(-1, keepdim=True).clamp(min=_LEAST_MASS), kept)
        return mixed
