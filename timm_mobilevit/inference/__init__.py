"""Faster copies of trained networks, for inference."""
