"""What benchmarks/gpu_check.sh runs on a machine with a GPU.

build.py (the package in a folder of its own) → parity.py, differentiation.py (is it right) → sanitizer.py (on
small sizes) → speed.py (how fast, beside others) → targets.py, document.py (the report). Every step is a
process of its own with its own time, writes rows (rows.py) as it goes, and cannot hide another step's
failure. steps.py lists them.
"""
