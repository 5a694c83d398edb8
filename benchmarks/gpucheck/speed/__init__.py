"""Speed of points, grids, training and the loss: each backend beside eager and compiled PyTorch.

comparison.py (check, then time) ← points.py, grids.py, training.py, losses.py (implementations) ← plain.py
(helpers for PyTorch). What torch.compile takes long for comes last in every module.
"""
