"""What the compiler makes of kernels, read without a GPU.

gpus.py (limits and peaks, as data) → binary.py (a recorded launch → machine code) → sass.py (its
instructions) → estimate.py (occupancy, roofline, how busy the main loop keeps which pipe).
"""
