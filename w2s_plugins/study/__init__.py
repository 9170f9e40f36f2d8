"""Experiments of more than one run: so far, what they cost."""
