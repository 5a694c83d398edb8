"""Stages of a product grid: Fourier basis of columns, Fourier coefficients of rows, all layers of a pixel."""
