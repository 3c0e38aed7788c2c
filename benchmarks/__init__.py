"""Benchmarks, run from a checkout; nothing in the package imports them."""
