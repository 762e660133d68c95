"""Worked examples of code outside ftlib."""
