"""Lossless compression of images with a trained model: bits back with ANS."""
