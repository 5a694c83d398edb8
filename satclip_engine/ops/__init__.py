"""PyTorch operators: schemas, shapes and gradients of what the backends compute."""
