"""Benchmarks of Nitro beside hand-written code: `make bench`."""
