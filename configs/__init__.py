"""Configurations: `default` has all fields and what they mean, the others what they change."""
