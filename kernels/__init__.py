"""Triton kernels; installed as `satclip_engine.kernels`. They know tensors only.

    harmonics.py  encode.py  grid.py  loss.py     what is computed: launchers take and return tensors
    basis.py  dense.py                            the parts they share
    sine.py  dropout.py  store.py                 arithmetic inside kernels
    launch.py  tuning.py                          how a kernel is started, and in which shape

Tensors are on a CUDA device, or on the CPU where TRITON_INTERPRET=1 was set before triton was imported.
"""
