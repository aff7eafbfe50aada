"""Demos and measurements that run from the source tree; not installed."""
