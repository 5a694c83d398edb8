"""Results of a run: checkpoints, log, picture, display."""
