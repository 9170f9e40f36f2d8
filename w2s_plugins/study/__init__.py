"""Experiments of many runs: one file says which, each run is a process of its own, one table compares them.

``spec.py`` reads the file, ``plan.py`` makes a list of runs of it (name, flags, needs) and checks them once.
``layout.py`` is the folder of a study. ``runner.py`` works through the list: a run is a subprocess of train_w2s.py,
held by a lock; ``slurm.py`` hands the same runs to a cluster. ``collect.py`` reads what finished runs have left,
``table.py`` compares with ``statistics.py``, ``figures.py`` draws, ``report.py`` makes a page of both.
"""
