"""Benchmarks: each script measures what docs/results.md quotes, and writes benchmarks/results/*.json."""
