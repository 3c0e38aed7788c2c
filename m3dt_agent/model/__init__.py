"""The network: a Prompt Decision Transformer (prompt_dt.py) of GPT-2 blocks (transformer.py) with routed experts (moe.py)."""

from .prompt_dt import M3DT, ExpertChoice, PromptCache

__all__ = ["M3DT", "ExpertChoice", "PromptCache"]
