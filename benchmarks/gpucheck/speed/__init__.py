"""How fast points, grids, training and the loss are: each backend beside eager and compiled PyTorch.

contest.py (check, then time) ← points.py, grids.py, training.py, losses.py (who takes part) ← plain.py
(PyTorch as somebody who knows it would write it). What torch.compile takes long for comes last in every part.
"""
