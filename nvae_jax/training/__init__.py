"""Objective, optimiser, train step and the loop around them."""
