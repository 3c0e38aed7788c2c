"""Minari datasets in, batches of (task, window, prompt) out.

behavior.py       who acts while collecting                  collect.py     rollouts of many tasks, in shards.py's processes
episodes.py       Minari datasets, written and read          validation.py  what may be wrong with one
pack.py           memory-mapped steps of one dataset         disk.py        whole folders or nothing
task_datasets.py  the packs of several tasks                 stats.py       observation statistics, target returns
prompts.py        prompts                                    windows.py     what the model sees
batches.py        the batch sampler
"""
