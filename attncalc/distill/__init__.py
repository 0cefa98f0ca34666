"""Distillation: a fast potential of one structure, trained on labels that it asks an oracle for."""
