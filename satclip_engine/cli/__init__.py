"""Commands: one short module each, and what they share."""
