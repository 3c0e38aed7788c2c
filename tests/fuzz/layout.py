"""Where things are in the fuzzer's folder, and its limits; known to both processes.

BASE/level/a/b/box/in, out, tmp     the sandbox, emptied for every input        BASE/templates     the sound inputs
everything else under BASE          sentinels, which nobody may open or change
"""

from __future__ import annotations

import os
from pathlib import Path

BOX = Path("level", "a", "b", "box")
HOME = "home"
SECRET = b"-----BEGIN OPENSSH PRIVATE KEY----- fuzz "
"""What the sentinel files hold. It must not turn up in anything that a reader writes or says."""
TOKEN = "hf_secretsecretsecret"
BANK, DATA = "alice/bank", "alice/data"
MORE_MEMORY = 1_000_000_000
"""Bytes that a worker may map besides what it has mapped when it begins."""
MOST_RESIDENT_MB = 1_000
MOST_WRITTEN = 100_000_000
"""Bytes that a reader may write; all templates are far smaller."""
LONGEST_WAIT_S = 600
LIMIT_S = float(os.environ.get("M3DT_FUZZ_LIMIT_S", "5"))
"""For each input."""
