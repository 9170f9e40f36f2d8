"""Runs that need one another: as ``--protocol w2s``, ``--stages`` or ``--folds``, in one process, and as a study, a
file of many runs, each a process of its own.

``planning.py`` makes the list, also that of a study, which ``spec.py`` reads; what their runs have in common is in
``controls.py``. ``carry_out.py`` works through a list in this process, ``runner.py`` by processes that are held by a
lock, ``slurm.py`` on a cluster. ``w2s.py``, ``chain.py`` and ``folds.py`` are what is checked before and told after;
``outcome.py`` has the figures of a protocol. ``layout.py`` is the folder of a study,
``collect.py`` reads what finished runs have left, ``table.py`` compares with ``statistics.py``, ``figures.py`` draws,
``report.py`` makes a page of both.
"""
