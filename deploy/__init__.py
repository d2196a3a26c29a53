"""Exported networks: written, proved and reported by parts found by entry point; loaded by ``load``."""

from .loading import LoadedNetwork, load

__all__ = ["LoadedNetwork", "load"]
