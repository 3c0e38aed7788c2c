"""The model, M3DT: a Prompt Decision Transformer with a bank of experts in every block (arXiv 2505.24378, section 4).

Every step is K = 3 tokens: return-to-go R, state s and action a (K = 2, without R, if `use_returns` is False). The prompt's
steps come first:

    R₁ s₁ a₁ … R_P s_P a_P │ R₁ s₁ a₁ … R_T s_T          (the last action is left out: no state token may look at it)
    └── prompt, 3P tokens ─┘ └── window, 3T - 1 tokens ─┘
                                ▼              ▼
                             action 1       action T      = tanh(linear(LN(state token)))

A token is the linear embedding of its value plus, if `use_timesteps`, a learned embedding of its timestep. Prompt and window
have embeddings of their own; only the window's are followed by a LayerNorm. Attention is causal and skips padding, except that
every token may look at itself, so that a window of nothing but padding gives finite numbers.

Work that cannot reach an action is not done. In the last block only state tokens are queries and pass through the feed-forward
part; in `act` only the last state token does. Prompt tokens look only at each other, so `act` takes their keys and values from
a `PromptCache`, which is computed once per reset and is exact.

Shape legend: B batch, T steps, P prompt steps, L layers, D embed_dim, H heads, E experts, S tokens, K tokens per step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..config.checks import is_integer
from ..data.windows import Window
from ..errors import ConfigError, ShapeError, StageError
from .dropout import Dropout
from .moe import INIT_STD, ExpertStack
from .prompt_cache import PromptCache
from .routing import Routing, RoutingUsage
from .tensors import copy_all
from .tokens import TokenEmbedding, causal_mask
from .transformer import Block, Choice, KeyValues

ExpertChoice = Literal["none", "mixture"] | Routing | int | Sequence[int]
"""Which experts a pass uses.

"none": only the backbone. "mixture": all experts, weighted by the router. Routing: the heaviest experts of each window,
weighted by the router. e: expert e with weight 1. K experts: the batch consists of K equal groups of windows, and group k uses
the k-th of these experts with weight 1.
"""


RECORDINGS = "_recordings"
"""The attribute in which `recorded` keeps what it recorded of a model."""


class M3DT(nn.Module):
    """The whole model. With `n_experts=0` it is the backbone alone, without expert or router tensors.

    Weights are initialised as in GPT-2: matrices and embeddings N(0, 0.02), biases 0. A new expert's output layer is 0, so that
    it adds nothing. Dropout is where GPT-2 has it, always at the rate `config.dropout`: on embedded tokens, attention
    probabilities, attention outputs, and the sum of a block's feed-forward outputs. It draws from torch's global generator, or
    from each window's own stream inside `dropout.keyed_dropout`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config)
        self.embed_norm = nn.LayerNorm(config.embed_dim) if config.use_embed_norm else nn.Identity()
        self.embed_prompt = TokenEmbedding(config)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.embed_dim)
        self.predict_action = nn.Linear(config.embed_dim, config.act_dim)
        self.apply(_initialize)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != RECORDINGS}  # a copy has its own weights

    def forward(self, window: Window, prompt: Window, experts: ExpertChoice = "none") -> Tensor:
        """Predicts the action of every step of `window` from the prompt and everything up to the step's state.

        Returns:
            actions (B, T, act_dim) in (-1, 1).

        Raises:
            ShapeError: a field has the wrong width, there are not as many prompts as windows, or K experts do not divide B.
            ConfigError: the model does not have these experts.
        """
        self._check(window, "window")
        self._check(prompt, "prompt")
        choice = self._choose(experts, len(window.mask))
        if len(prompt.mask) != len(window.mask):
            raise ShapeError(f"window has {len(window.mask)} rows, prompt has {len(prompt.mask)}; they must be equal")
        x = self.dropout(torch.cat((self.embed_prompt(prompt), self._embed_window(window)), dim=1))  # (B, KP + KT - 1, D)
        mask = self._mask(prompt.mask, window.mask, x.shape[1])  # (B, 1, KP + KT - 1, KP + KT - 1)
        states = self._states(prompt.mask.shape[1])
        *blocks, last = self._layers
        for block in blocks:
            x = block(x, mask, choice)
        x = last(x, mask[:, :, states], choice, queries=states)  # (B, T, D)
        return self._predict(x)

    def forward_shared(self, window: Window, prompts: Window, of: Tensor, experts: ExpertChoice = "none") -> Tensor:
        """As `forward`, where window b has the prompt `of[b]`, of (B,) int64. Each of the P prompts is computed once.

        With K experts, the prompts are K equal groups too, and a window's is in its own group. Without dropout, because what is
        dropped from a prompt differs from window to window.

        Raises:
            ShapeError, ConfigError: as in `forward`.
        """
        self._check(window, "window")
        self._check(prompts, "prompts")
        choice = self._choose(experts, len(window.mask))
        self._choose(experts, len(prompts.mask))
        x, y = self._embed_window(window), self.embed_prompt(prompts)  # (B, KT - 1, D), (P, KP, D)
        KP = y.shape[1]
        mask = self._mask(prompts.mask[of], window.mask, KP + x.shape[1])[:, :, KP:]  # (B, 1, KT - 1, KP + KT - 1)
        own_mask = self._mask(prompts.mask, prompts.mask[:, :0], KP)  # (P, 1, KP, KP)
        states = self._states(0)
        *blocks, last = self._layers
        for block in blocks:
            past = block.shared_keys_values(y, of)
            x, y = block(x, mask, choice, past=past), block(y, own_mask, choice)
        x = last(x, mask[:, :, states], choice, queries=states, past=last.shared_keys_values(y, of))  # (B, T, D)
        return self._predict(x)

    def encode_prompt(self, prompt: Window, experts: ExpertChoice = "none") -> PromptCache:
        """Computes the keys and values of B prompts, for `act` with the same `experts`.

        Raises:
            ShapeError, ConfigError: as in `forward`.
        """
        self._check(prompt, "prompt")
        choice = self._choose(experts, len(prompt.mask))
        x = self.dropout(self.embed_prompt(prompt))  # (B, KP, D)
        mask = self._mask(prompt.mask, prompt.mask[:, :0], x.shape[1])  # (B, 1, KP, KP)
        *blocks, last = self._layers
        cached = []
        for block in blocks:
            cached.append(block.keys_values(x))
            x = block(x, mask, choice)
        cached.append(last.keys_values(x))
        keys, values = (torch.stack(tensors) for tensors in zip(*cached, strict=True))  # (L, B, H, KP, D/H)
        return PromptCache(keys, values, prompt.mask.clone())

    def act(self, window: Window, cache: PromptCache, experts: ExpertChoice = "none") -> Tensor:
        """Predicts the action of the last step of each window, (B, act_dim); equals `forward(...)[:, -1]`.

        Windows may be shorter than `context_length`: padding changes nothing, so early steps need none.

        Raises:
            ShapeError: as in `forward`, or the cache does not have one prompt per window.
            ConfigError: the model does not have these experts.
        """
        self._check(window, "window")
        rows, prompts = window.mask.shape[0], cache.mask.shape[0]  # `len` would fix their number in an exported pass
        choice = self._choose(experts, rows)
        if prompts != rows:
            raise ShapeError(f"window has {rows} rows, the prompt cache {prompts}; they must be equal")
        x = self.dropout(self._embed_window(window))  # (B, KT - 1, D)
        KP = cache.keys.shape[3]
        mask = self._mask(cache.mask, window.mask, KP + x.shape[1])[:, :, KP:]  # (B, 1, KT - 1, KP + KT - 1)
        past = [KeyValues(keys, values) for keys, values in zip(cache.keys, cache.values, strict=True)]
        *blocks, last = self._layers
        for block, kept in zip(blocks, past, strict=False):
            x = block(x, mask, choice, past=kept)
        x = last(x, mask[:, :, -1:], choice, queries=slice(-1, None), past=past[-1])  # (B, 1, D)
        return self._predict(x)[:, 0]

    @torch.no_grad()
    def router_weights(self, window: Window, prompt: Window) -> Tensor:
        """The router's weights at every state token, (B, T, L, E): they sum to 1 over the experts."""
        weights: list[Tensor] = []
        hooks = [
            block.router.register_forward_hook(lambda _module, _inputs, output: weights.append(output))
            for block in self._layers
            if self.config.n_experts
        ]
        try:
            self(window, prompt, "mixture")
        finally:
            for hook in hooks:
                hook.remove()
        states = self._states(prompt.mask.shape[1])
        return torch.stack([*(w[:, states] for w in weights[:-1]), weights[-1]], dim=2)

    def routing_usage(self) -> RoutingUsage:
        """Which experts the last pass (`forward`, `act` or `encode_prompt`) with a `Routing` used in each block.

        Raises:
            StageError: there was no such pass yet.
        """
        found = [block.usage for block in self._layers if block.usage is not None]
        if not found:
            raise StageError("no pass was routed by a Routing yet")
        kept, dropped = zip(*found, strict=True)
        return RoutingUsage(torch.stack(kept), torch.stack(dropped))

    def lower_frozen(self, dtype: torch.dtype) -> None:
        """Stores the frozen weights of the blocks' matrix products in `dtype`; passes must then run inside `autocast`."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear | ExpertStack):
                for parameter in module.parameters(recurse=False):
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(dtype)

    def lay_out_for_training(self) -> None:
        """Lays frozen experts out in memory so that a training step reads them fastest. Values and shapes stay."""
        for block in self._layers:
            if self.config.n_experts:
                block.experts.lay_out_for_training()

    def autocast(self) -> torch.autocast:
        """The context for a pass: it computes products in bfloat16 if any of the blocks' parameters are stored in it."""
        parameter = next(self.blocks.parameters())
        lowered = any(p.dtype == torch.bfloat16 for p in self.blocks.parameters())
        return torch.autocast(parameter.device.type, torch.bfloat16, enabled=lowered)

    def backbone_tensors(self) -> dict[str, nn.Parameter]:
        """Name → parameter (not a copy) of everything that stage 1 trains."""
        return {name: p for name, p in self.named_parameters() if ".experts." not in name and ".router." not in name}

    def expert_tensors(self) -> dict[str, nn.Parameter]:
        """Name → parameter (not a copy) of the experts; the first dimension is E."""
        return {name: p for name, p in self.named_parameters() if ".experts." in name}

    def router_tensors(self) -> dict[str, nn.Parameter]:
        """Name → parameter (not a copy) of the routers."""
        return {name: p for name, p in self.named_parameters() if ".router." in name}

    def expert_slice(self, expert: int) -> dict[str, Tensor]:
        """A copy of one expert's tensors, by the names of `expert_tensors` and without their first dimension.

        Raises:
            ConfigError: the model has no such expert.
        """
        self._choose(expert, 1)
        tensors = self.expert_tensors().items()
        return {name: p.detach()[expert].clone(memory_format=torch.contiguous_format) for name, p in tensors}

    def load_expert(self, expert: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites one expert with tensors as `expert_slice` returns them.

        Raises:
            ConfigError: the model has no such expert, or tensors are missing or unknown.
            ShapeError: a tensor has another shape. InvalidValueError: a weight is NaN or infinite.
        """
        self._choose(expert, 1)
        copy_all(tensors, {name: p[expert] for name, p in self.expert_tensors().items()}, f"expert {expert}")

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites one or more whole parts (backbone, experts, router). If anything does not fit, nothing is changed.

        Raises:
            ConfigError: there are no tensors, unknown ones, or a part of them is not complete.
            ShapeError: a tensor has another shape. InvalidValueError: a weight is NaN or infinite.
        """
        parts = self.backbone_tensors(), self.expert_tensors(), self.router_tensors()
        wanted = {name: p for part in parts if not tensors.keys().isdisjoint(part) for name, p in part.items()}
        copy_all(tensors, wanted or dict(self.named_parameters()), "the model")

    @property
    def _layers(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _embed_window(self, window: Window) -> Tensor:
        tokens: Tensor = self.embed_norm(self.embed(window)[:, :-1])  # (B, KT - 1, D)
        return tokens

    def _mask(self, prompt: Tensor, window: Tensor, n_tokens: int) -> Tensor:
        return causal_mask(prompt, window, n_tokens, self.config.tokens_per_step)

    def _states(self, prompt_steps: int) -> slice:
        """Where the window's state tokens are, after a prompt of so many steps."""
        per_step = self.config.tokens_per_step
        return slice(per_step * prompt_steps + per_step - 2, None, per_step)

    def _predict(self, x: Tensor) -> Tensor:
        actions: Tensor = self.predict_action(self.final_norm(x)).tanh()  # (…, D) to (…, act_dim)
        return actions

    def _choose(self, experts: ExpertChoice, n_rows: int) -> Choice:
        E = self.config.n_experts
        if isinstance(experts, str):
            if experts == "none":
                return "none"
            if experts == "mixture" and E:
                return "mixture"
            valid = f"'none', 'mixture', or experts 0 … {E - 1}" if E else "'none': this model has no experts"
            raise ConfigError(f"experts must be {valid}; got {experts!r}")
        if isinstance(experts, Routing):
            if not E:
                raise ConfigError(f"experts must be 'none': this model has no experts; got {experts!r}")
            for block in self._layers:
                block.usage = None
            return experts
        chosen = tuple(experts) if isinstance(experts, Iterable) else (experts,)
        if not chosen or not all(is_integer(e) and 0 <= e < E for e in chosen):
            raise ConfigError(f"experts must be among the model's {E} (numbered from 0); got {experts!r}")
        chosen = tuple(int(e) for e in chosen)  # NumPy's integers become Python's
        if n_rows % len(chosen):
            raise ShapeError(f"{len(chosen)} experts need a batch of as many equal groups; got {n_rows} rows")
        return chosen

    def _check(self, window: Window, what: str) -> None:
        B, T = window.mask.shape if window.mask.ndim == 2 else (-1, -1)
        config = self.config
        expected = {
            "states": (B, T, config.state_dim),
            "actions": (B, T, config.act_dim),
            "returns_to_go": (B, T, 1),
            "timesteps": (B, T),
            "mask": (B, T),
        }
        for field, shape in expected.items():
            if (got := tuple(getattr(window, field).shape)) != shape or T < 1:
                raise ShapeError(f"{what}.{field} must have shape {shape} with at least one step; got {got}")


def _initialize(module: nn.Module) -> None:
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return  # no memory to fill; torch's way of doing nothing takes a fifth of the time to load a small bank
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
