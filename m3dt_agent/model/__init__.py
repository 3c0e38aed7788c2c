"""The network: a Prompt Decision Transformer of GPT-2 blocks with routed experts. It knows no task and no environment.

prompt_dt.py     the whole model                              tokens.py        steps to tokens, and the attention mask
transformer.py   one block                                    prompt_cache.py  keys and values of prompts
moe.py           experts and router                           routing.py       which experts a window uses
dropout.py       dropout that each window draws for itself    precision.py     which precision is fastest here
empty.py         a model to be overwritten                    determinism.py   torch's threads and generators
sharing.py       a second model with the same weights          tensors.py       named tensors, overwritten all or none
recorded.py      one decision as a recorded graph
"""

from .precision import faster_precision
from .prompt_cache import PromptCache
from .prompt_dt import M3DT, ExpertChoice
from .routing import Routing, RoutingUsage
from .sharing import with_same_weights

__all__ = ["M3DT", "ExpertChoice", "PromptCache", "Routing", "RoutingUsage", "faster_precision", "with_same_weights"]
