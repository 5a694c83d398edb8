"""Triton kernels; installed as `satclip_engine.kernels`. They know tensors only.

    harmonics.py  encode.py  grid.py  loss.py     public launchers: they take and return tensors
    dense.py  last_layers.py  recurrence.py       layers and Legendre recurrences, shared by launchers
    split_operands.py                             float32 tensors split into pairs of float16
    product_grid/  contrastive/                   stages of grid.py and of loss.py
    device_functions/                             arithmetic inside kernels
    launch.py  tuning.py                          starting a kernel, and its configuration
    tools/                                        for developers: reports, tuning

Tensors are on a CUDA device, or on the CPU where TRITON_INTERPRET=1 was set before triton was imported.
"""
