"""Benchmarks: what `satclip-bench` runs.

cases.py (what is measured, as data) → kernels, points, grid, loss, write (who runs it) → measure.py (answers,
then times, then memory) → results.py (records in JSON) → tables.py (for terminals and documents).
"""
