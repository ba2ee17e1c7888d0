"""Faults done to phasewatch on purpose, and what became of them.

``make faults`` does all of them and prints a table; ``tests/test_faults.py`` does a few of each.
A module of this package holds the faults of one kind. A fault is a function that does it once::

    @fault("flipped bit: checkpoint sidecar", tries=200, quick=3)
    def flipped_sidecar(bench: Bench) -> Outcome: ...

Everything random comes from ``bench.random``, seeded by the name of the fault and the number of the
try, so a try can be repeated alone: ``python -m faults --only NAME --try 17``.
"""
