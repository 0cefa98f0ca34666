"""Distillation: a fast potential of one structure, trained on labels of an oracle."""
