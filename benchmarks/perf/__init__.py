"""Performance programs. Each measures one hot path against a plain baseline that does the same work in the same run."""
