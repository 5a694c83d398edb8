"""PyTorch operators: dispatch to the backends, schemas, shapes and gradients."""
