"""Stands for TensorFlow, which writes curves and is slow to import, where it comes first."""

raise ModuleNotFoundError("TensorFlow is hidden from this test")
