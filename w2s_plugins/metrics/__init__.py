"""Figures: performance gap recovered, accuracy by frequency of the class, weights of samples."""
