"""The network: a Prompt Decision Transformer (prompt_dt.py) of GPT-2 blocks (transformer.py) with routed experts
(moe.py, routing.py)."""

from .precision import faster_precision
from .prompt_dt import M3DT, ExpertChoice, PromptCache
from .routing import Routing, RoutingUsage

__all__ = ["M3DT", "ExpertChoice", "PromptCache", "Routing", "RoutingUsage", "faster_precision"]
