"""Differentiable search: small parts that a recipe puts together."""
