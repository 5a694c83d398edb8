"""Developers' tools: reports of compiled kernels, tuning of configurations. Nothing at run time uses them.

workloads.py                       arguments on which every launcher is started
compiler.py  sass.py               a recorded launch → machine code, without a GPU → its instructions
gpus.py  roofline.py               limits and peaks of GPUs, as data → occupancy, rooflines, estimates
report.py  figures.py  report_tables.py  baselines.py    docs/kernels-compiled.md
tune.py  candidates.py             the fastest configurations, for tuning.json
"""
