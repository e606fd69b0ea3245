"""Exchange with other implementations."""
