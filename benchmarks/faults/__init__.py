"""Campaigns against the library: kills, damaged inputs, full disks, many rounds. Each goes on where it was stopped.

Run one: python -m benchmarks.faults.mutations [--count N] [--smoke]
"""
