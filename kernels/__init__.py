"""Triton kernels; installed as `satclip_engine.kernels`."""
