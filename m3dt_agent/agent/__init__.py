"""`M3DTAgent`: the model of a bank, which acts on the bank's tasks.

agent.py        M3DTAgent: made, trained, saved, loaded       actor.py       its half that acts: reset, act, copy
acting.py       Acting: what is known between two resets      history.py     the last steps of every slot
parts.py        models that act side by side
conditions.py   the task that a slot acts on                  choice.py      the options: experts, precision, return-to-go
inputs.py       checks of what `act` is given                 one_thread.py  an agent serves one thread
fitting.py      the bank that a stage is trained into          learning.py     tasks learned from a few demonstrations
collecting.py   an agent as who acts while demonstrations are collected
"""

from .agent import M3DTAgent
from .choice import ROUTED_MASS, Experts, Precision, RtgMode

__all__ = ["ROUTED_MASS", "Experts", "M3DTAgent", "Precision", "RtgMode"]
