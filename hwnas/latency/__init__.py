"""Measuring latency, storing it, predicting it, and keeping it under a budget.

``environment``, ``measurement``, ``table``, ``model`` and ``budget`` import no torch; ``sweep`` does.
"""
