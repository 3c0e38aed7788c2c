"""One agent for 160 continuous-control tasks: M3DT (arXiv 2505.24378), a Prompt Decision Transformer with a bank of experts.

Importing this package registers the Gymnasium ids `M3DT/<task>-v0` and loads no simulator.
"""
