"""Evaluation of models: accuracy, attention maps and model cards."""
