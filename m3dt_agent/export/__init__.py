"""Export: an agent as one ONNX file that acts in its tasks without torch and without this package.

policy_file.py   writes the file, and a JSON document that describes it      step.py          what is in it, as a torch module
description.py   that document                                               leaving_out.py   a model with fewer experts
session.py       the file as a policy for `evaluate`, run by onnxruntime

Needs the extra `export`: onnx, onnxscript and onnxruntime. Whoever acts needs onnxruntime and NumPy alone.
"""

from .description import Description, TaskDescription, TensorDescription
from .policy_file import export_policy
from .session import ExportedPolicy

__all__ = ["Description", "ExportedPolicy", "TaskDescription", "TensorDescription", "export_policy"]
