"""The chaos harness: real processes, real faults, and a checker that compares effects with committed events.

`python -m tests.chaos --help` lists its options.
"""
