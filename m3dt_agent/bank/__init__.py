"""The expert bank: `ExpertBank`, a folder of safetensors files and a manifest that records their hashes.

expert_bank.py   opened, changed, copied           contents.py      what it holds, read and verified
manifest.py      bank.json                         tensor_files.py  safetensors files and their hashes
journal.py       commits that survive a kill       storage.py       weights in float32 or bfloat16
copies.py        whole new folders                 shipped.py       banks sent to jobs on other machines
adding.py        tasks that join by demonstrations
builtin.py       banks that come with the package
"""

from .contents import Status
from .expert_bank import ExpertBank, is_bank

__all__ = ["ExpertBank", "Status", "is_bank"]
