"""What probes.py is made of: targets and features of places → splits → probes → table."""
