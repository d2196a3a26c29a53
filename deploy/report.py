"""tmp"""

from pathlib import Path


def report(run):
    return Path(run) / "report.html"
