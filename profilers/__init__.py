"""Targets that hwnas can measure: one file each, found by entry point."""
