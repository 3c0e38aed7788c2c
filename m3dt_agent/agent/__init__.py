"""`M3DTAgent` (agent.py): a bank's model that acts. acting.py holds what it knows between two calls of `reset`."""

from .agent import M3DTAgent
from .choice import ROUTED_MASS, Experts, Precision, RtgMode

__all__ = ["ROUTED_MASS", "Experts", "M3DTAgent", "Precision", "RtgMode"]
