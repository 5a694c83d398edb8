"""Stages of the contrastive loss: log-sum-exps of similarities, their gradients, partition into programs."""
