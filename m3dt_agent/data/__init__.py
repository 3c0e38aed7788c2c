"""Makes Minari datasets, and draws from them the batches of (task, window, prompt) that training reads.

behavior/                 the policies that act in demonstrations
collect.py                makes demonstrations                collect_plan.py           what to collect, shard by shard
shards.py                 jobs that run a few episodes        kept.py                   recognises datasets made before
episodes.py               reads and writes Minari datasets    validation.py             lists what is wrong with one
pack.py                   one flat file per dataset           task_datasets.py          the packs of several tasks
stats.py                  observation statistics, returns     prompts.py                a task's best steps
windows.py                the model's inputs                  batches.py                the batch sampler
demonstrations.py         a few episodes of a new task, in memory
"""
