"""What others have published, read without running code of theirs.

Data: formats.py lists the formats, mt160.py, prompt_dt.py, minari.py and tdmpc2.py each read one into episodes.py's records.
Weights: weight_files.py reads and writes the authors' files, weight_names.py maps their names. Pickles: safe_pickles.py.
"""
