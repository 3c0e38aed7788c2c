"""Fuzzing of the four readers of strangers' bytes: bank folders, Minari datasets, published formats, answers of a Hub.

    recipe ── child: template + edits ──► input in a sandbox ── reader ──► a value, or an M3DTError; anything else is a finding

A recipe is plain JSON: the reader, the template it starts from, and a list of edits. Hypothesis draws and shrinks recipes
(recipes.py); a child process makes the input (edits_*.py, templates.py) and reads it (readers.py) under limits of memory and
time (guard.py, child.py); the parent compares a tree of sentinel files, hears who opens one (sentinels.py), and goes on when a
child dies (harness.py). A Hub's answers are changed on their way out (hub_answers.py).

    python -m pytest tests/fuzz -m "not slow"             forty inputs of each reader, the same every time
    python -m pytest tests/fuzz -m slow                   a quarter of an hour for each, others every time; and the proof
    PYTHONPATH=tests python -m fuzz banks 1000            counts, seconds, peak memory
    PYTHONPATH=tests python -m fuzz replay FILE           one kept recipe again

Environment: M3DT_FUZZ_SEED, M3DT_FUZZ_SECONDS (for each reader, where tests are slow), M3DT_FUZZ_LIMIT_S (for each input),
M3DT_FUZZ_KEEP (a folder for the recipes of findings).
"""
