"""The shape of the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..tasks import MAX_ACT_DIM, MAX_OBS_DIM, TaskSpec, lookup
from .checks import require, require_positive, require_types, stored


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the network (M3DT section 4 and appendix A.5).

    embed_dim D, n_layers, n_heads: the GPT-2 backbone. n_experts E: experts per block; 0 means no experts and no router.
    context_length T and prompt_length: in environment steps, of `tokens_per_step` tokens each.
    residual: "standard" adds a block's feed-forward sum to x; "published" adds it to LN(x) in blocks with experts, as the
    authors' code does. top_k: route each token to its k heaviest experts; None routes to all, as in the paper.
    ffn_multiple: inner width of the backbone's feed-forward layers, in multiples of D; an expert's is always 4.
    use_returns, use_timesteps: whether steps have a return-to-go token, and tokens the embedding of their timestep, as in the
    paper. Without returns the model imitates its demonstrations, whatever return it is asked for.
    use_embed_norm: whether a window's embedded tokens pass through a LayerNorm before the first block, as in the paper. It
    hides from the blocks how far a state is from the mean.
    """

    embed_dim: int
    n_layers: int
    n_heads: int
    n_experts: int
    context_length: int
    prompt_length: int
    max_timesteps: int = 1000
    state_dim: int = MAX_OBS_DIM
    act_dim: int = MAX_ACT_DIM
    dropout: float = 0.1
    residual: Literal["standard", "published"] = "standard"
    top_k: int | None = None
    ffn_multiple: int = 4
    use_returns: bool = True
    use_timesteps: bool = True
    use_embed_norm: bool = True

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(
            self,
            *("embed_dim", "n_layers", "n_heads", "context_length", "prompt_length"),
            *("max_timesteps", "state_dim", "act_dim", "ffn_multiple"),
        )
        require(self.n_experts >= 0, self, "n_experts", "an integer >= 0")
        for name, largest in _LARGEST.items():
            require(getattr(self, name) <= largest, self, name, f"at most {largest:,}")
        require(self.embed_dim % self.n_heads == 0, self, "n_heads", f"a divisor of embed_dim={self.embed_dim}")
        require(0.0 <= self.dropout < 1.0, self, "dropout", "in [0, 1)")
        if self.top_k is not None:
            require(1 <= self.top_k <= self.n_experts, self, "top_k", f"None or 1 … n_experts={self.n_experts}")

    def for_tasks(self, tasks: Iterable[TaskSpec]) -> ModelConfig:
        """This shape, wide and long enough for `tasks`: state_dim, act_dim and max_timesteps grow, and never shrink."""
        tasks = tuple(tasks)
        return dataclasses.replace(
            self,
            state_dim=max((self.state_dim, *(task.obs_dim for task in tasks))),
            act_dim=max((self.act_dim, *(task.act_dim for task in tasks))),
            max_timesteps=max((self.max_timesteps, *(task.max_episode_steps for task in tasks))),
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step: return-to-go (with `use_returns`), state and action."""
        return 3 if self.use_returns else 2

    @property
    def has_published_parts(self) -> bool:
        """Whether the model has every part that the paper's has: returns, timesteps, and the norm of embedded tokens."""
        return self.use_returns and self.use_timesteps and self.use_embed_norm

    @property
    def n_tokens(self) -> int:
        """Tokens of a prompt and a window together, without the window's last action."""
        return self.tokens_per_step * (self.prompt_length + self.context_length) - 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as banks store and hash them.

        Fields added later are stored only if they differ from their default, so that old banks keep their hash and old versions
        read new banks.
        """
        return stored(self, _ADDED_LATER)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """`tiny` (tests), `quick` (own tasks), `small` (a laptop) or `paper` (48 experts); keywords replace single fields.

        Raises:
            UnknownTaskError: no preset of that name.
            ConfigError: a changed field does not validate.
        """
        return dataclasses.replace(lookup(_MODEL_PRESETS, name, "model preset"), **changes)


_ADDED_LATER: dict[str, Any] = {"ffn_multiple": 4, "use_returns": True, "use_timesteps": True, "use_embed_norm": True}
"""Fields of ModelConfig that the first banks did not have, with their defaults."""

_LARGEST = {
    "embed_dim": 8192,  # 32 times the paper's
    "n_layers": 256,  # 40 times the paper's
    "n_experts": 1000,  # a bank's files are experts/000 … experts/999
    "context_length": 1024,  # episodes of these tasks have at most 500 steps; attention takes memory by the square
    "prompt_length": 1024,
    "max_timesteps": 10_000,
    "state_dim": 1024,  # the widest task has 39
    "act_dim": 1024,
    "ffn_multiple": 1024,  # a backbone as large as 160 experts of the paper has some 200
}
"""A bank's numbers decide how much memory its model takes, and a bank may be a stranger's: above these nothing is built."""

_MODEL_PRESETS = {
    "tiny": ModelConfig(32, 2, 2, n_experts=3, context_length=5, prompt_length=3),
    "quick": ModelConfig(
        *(64, 2, 2),
        n_experts=4,
        context_length=1,
        prompt_length=2,
        dropout=0.0,
        use_returns=False,
        use_timesteps=False,
        use_embed_norm=False,
    ),
    "small": ModelConfig(128, 3, 4, n_experts=4, context_length=8, prompt_length=5),
    "paper": ModelConfig(256, 6, 8, n_experts=48, context_length=20, prompt_length=5),
}
