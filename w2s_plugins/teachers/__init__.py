"""Weak teachers."""
