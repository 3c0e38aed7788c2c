"""`M3DTAgent`: the model of a bank, which acts on the bank's tasks.

agent.py        M3DTAgent: made, trained, saved, reset        acting.py    Acting: what is known between two resets
conditions.py   the task that a slot acts on                  history.py   the last steps of every slot
inputs.py       checks of what `act` is given                 choice.py    the options: experts, precision, return-to-go
fitting.py      the bank that a stage is trained into
"""

from .agent import M3DTAgent
from .choice import ROUTED_MASS, Experts, Precision, RtgMode

__all__ = ["ROUTED_MASS", "Experts", "M3DTAgent", "Precision", "RtgMode"]
