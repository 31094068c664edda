"""Metrics S, one kind a file: symmetric positive definite matrices that are applied, hardly ever formed.

A metric knows how S, S^½ and S^-½ act, and what an implicit step makes of it. It knows no loss: it may come from an
optimizer, a user or a test.
"""
