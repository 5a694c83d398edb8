"""Device functions of Triton that several kernels call: sines, dropout, split-fp16 products, quantisation."""
