"""Turns steps into tokens, and says which token may look at which.

Every step is K = 3 tokens: return-to-go R, state s and action a; K = 2 without returns (`use_returns`). The prompt's tokens
come before the window's.

Shape legend: B batch, T steps, P prompt steps, D embed_dim, S tokens, K tokens per step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..data.windows import Window


class TokenEmbedding(nn.Module):
    """Embeds return-to-go, state and action of every step linearly and adds the embedding of the step's timestep."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.embed_dim
        self.timestep = nn.Embedding(config.max_timesteps, D) if config.use_timesteps else None
        self.return_to_go = nn.Linear(1, D) if config.use_returns else None
        self.state = nn.Linear(config.state_dim, D)
        self.action = nn.Linear(config.act_dim, D)

    def forward(self, window: Window) -> Tensor:
        """Returns tokens (B, K T, D) in the order R₁ s₁ a₁ R₂ …"""
        values = [self.state(window.states), self.action(window.actions)]
        if self.return_to_go is not None:
            values.insert(0, self.return_to_go(window.returns_to_go))
        tokens = torch.stack(values, dim=2)  # (B, T, K, D)
        if self.timestep is not None:
            time: Tensor = self.timestep(window.timesteps)  # (B, T, D)
            tokens = tokens + time[:, :, None]
        return tokens.flatten(1, 2)


def causal_mask(prompt: Tensor, window: Tensor, n_tokens: int, per_step: int = 3) -> Tensor:
    """The attention mask (B, 1, S, S) of the first S = `n_tokens` tokens, True where a token may look at another.

    A token may look at itself and at every earlier token that is no padding.

    prompt, window: the masks of their steps, (B, P) and (B, T) bool; True on real steps. per_step: K.
    """
    real = torch.cat((prompt, window), dim=1).repeat_interleave(per_step, dim=1)[:, :n_tokens]  # (B, S)
    position = torch.arange(n_tokens, device=real.device)
    earlier, itself = position < position[:, None], position == position[:, None]  # (S, S)
    return ((earlier & real[:, None]) | itself)[:, None]
