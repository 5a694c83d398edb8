"""Check of everything that only a GPU can show: the steps of benchmarks/gpu_check.sh.

build.py (the package in a folder of its own) → parity.py, differentiation.py (is it right) → sanitizer.py (on
small sizes) → speed/ (how fast, beside others) → targets.py, document.py (the report). Every step is a
process of its own with its own time, writes rows (rows.py) as it goes, and cannot hide another step's
failure. steps.py lists them.
"""
