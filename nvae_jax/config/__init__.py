"""The description of a run: what it trains, on which data, and how."""
