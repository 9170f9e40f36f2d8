"""Runs that need one another: as ``--protocol w2s``, ``--stages`` or ``--folds``, in one process, and as a study, a
file of many runs, each a process of its own.

``planning.py`` makes the list, a ``RunPlan`` of ``plan.py``, also that of a study, which ``spec.py`` reads; what their
runs have in common is in ``controls.py``. ``executor.py`` works through a plan: runs are made in this process by
``carry_out.py``, by processes that are held by a lock by ``runner.py``; ``slurm.py`` hands them to a cluster.
``ahead.py`` looks at flags and data before the first run. ``w2s.py``, ``chain.py`` and ``folds.py`` are what is checked
before and told after; ``scores.py`` has the figures of a protocol. ``layout.py`` is the folder of a study,
``collect.py`` reads what finished runs have left, ``loss_table.py`` compares with ``statistics.py``, ``drawings.py``
draws, ``report.py`` makes a page of both.
"""
