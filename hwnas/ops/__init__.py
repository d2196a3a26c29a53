"""Operators as PyTorch modules."""
