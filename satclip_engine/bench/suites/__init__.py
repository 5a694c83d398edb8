"""Implementations to be measured, a module for each group of workloads, with the baselines beside them."""
