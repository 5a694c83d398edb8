"""Parts of probes.py: targets and features of points → splits → probes → table."""
