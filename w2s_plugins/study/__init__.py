"""Experiments of more than one run: their plan, their execution, and what they cost.

`spec.py` reads the YAML, `plan.py` makes runs of it: each is a command, known by a hash of it, so that equal ones are
one run and a changed one is another. `layout.py` is the folder that all parts share. `pool.py` starts a process of
`worker.py` for each run, and that one starts `train_w2s.py`: it holds the lock (`lease.py`), gives signs of life,
tries twice, and writes down what became of the run. It imports Python's own library only, so it costs no time. The
chain ends from above: a worker asks ten times a second whether its parent is still the same process, and then ends its
training with SIGTERM, which saves a checkpoint; a training whose worker is killed gets SIGKILL from Linux. So nobody
trains without a lock. Locks are numbered files: taking one over is the exclusive creation of the next number, so two
that find the same dead lock cannot both succeed, and the old holder sees that it has lost. `slurm.py` writes arrays
whose tasks are the same workers. `estimate.py` runs the script itself, on a few samples.
"""
