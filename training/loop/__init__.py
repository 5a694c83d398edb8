"""The training loop: batches, model, optimizer, validation, state, processes."""
