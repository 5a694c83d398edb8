"""Benchmarks: the harness that `satclip-bench` runs.

catalogue.py (workloads, as data) → suites/ (implementations of each) → measure.py (answers, then times),
peak_memory.py and child.py → results.py (records in JSON) → result_tables.py (for terminals and documents).
run.py takes a group of workloads through all of it.
"""
