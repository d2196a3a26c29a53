"""Latency tables that ship with hwnas; see the README in this folder."""
