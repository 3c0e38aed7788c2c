"""How fast the hot paths are, each against a plain baseline of the same work in the same run."""
