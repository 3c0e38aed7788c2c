"""Reading what others have published, data and weights, without running code of theirs.

formats.py          the table of data formats; mt160.py, tdmpc2.py, prompt_dt.py and minari.py each read one
episodes.py         the records that all of them produce, and the checks that they share
weight_files.py     the authors' weight files; weight_names.py says which of their tensors is which of ours
safe_pickles.py     pickles without executing them
"""
