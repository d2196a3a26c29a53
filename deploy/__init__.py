"""Exporters, verification and reports, found by entry point."""
