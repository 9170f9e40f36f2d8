"""Experiments of more than one run: their plan, their execution, and what they cost."""
