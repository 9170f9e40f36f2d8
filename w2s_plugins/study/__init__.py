"""Experiments of more than one run: their plan, their execution, and what they cost.

`spec.py` reads the YAML, `plan.py` makes runs of it: each is a command, known by a hash of it, so that equal ones are
one run and a changed one is another. `layout.py` is the folder that all parts use. `pool.py` has a thread for each run
in hand, in which `worker.py` starts `train_w2s.py`, holds the lock (`lease.py`), gives signs of life, tries twice, and
writes down what became of the run. A training whose runner is killed gets SIGTERM from Linux, which saves a
checkpoint, and the lock names its process as well: so nobody trains without a lock. Locks are numbered files: taking
one over is the exclusive creation of the next number, so two that find the same dead lock cannot both succeed, and the
old holder sees that it has lost. `slurm.py` writes arrays whose tasks do the same for one run. `estimate.py` runs the
script itself, on a few samples.
"""
