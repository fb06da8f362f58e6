"""The chaos harness: real processes and real faults, and a checker that knows what was committed.

`python -m tests.chaos --help` says how it is run.
"""
