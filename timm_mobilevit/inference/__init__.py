"""A trained network rewritten so that it answers faster."""
