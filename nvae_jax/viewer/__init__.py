"""A page on which people try a trained model: what it shows, and the page."""
