"""Sharpness-aware training: every method under one contract, with exact resume and counted cost."""

__version__ = "0.1.0"
