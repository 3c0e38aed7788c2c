"""The expert bank: `ExpertBank` (expert_bank.py), a folder of safetensors and the manifest that vouches for them.

manifest.py      bank.json                         tensor_files.py  safetensors and their hashes
journal.py       commits that survive a kill       storage.py       weights in float32 or bfloat16
builtin.py       banks that come with the package  shipped.py       banks sent to jobs on other machines
"""

from .expert_bank import ExpertBank, Status, is_bank

__all__ = ["ExpertBank", "Status", "is_bank"]
