"""Every error hwnas raises on purpose.

Each is a ``HwnasError`` and also the builtin that fits, so ``except ValueError`` keeps working::

    HwnasError
      UsageError (ValueError)              an argument is wrong; the command line exits with 2
        UnknownNameError (KeyError)        no space, recipe, profiler, exporter or data set of that name
        InfeasibleBudgetError              the target lies below the fastest network of the space
        UnsupportedSpaceError              this part cannot treat that kind of search space
      MissingPackageError (ImportError)    a plug-in needs a package that is not installed
      SpaceError (ValueError)              a search space contradicts itself
      ArchitectureError (ValueError)       an architecture does not belong to its space
      MissingChoiceError (KeyError)        gates do not cover every choice of the space
      TableError (ValueError)              a latency table cannot be used
        TableFormatError                   a row or the sidecar is malformed; names file and line
        MissingSignatureError (KeyError)   the table lacks operators of the space
        EnvironmentMismatchError           the table was measured elsewhere
        UnitError                          the numbers look like another unit than milliseconds
      DataError (ValueError)               a data set is empty, unreadable or inconsistent
      MeasurementError (RuntimeError)      a device could not run or time what it was given
        DeviceLostError                    it stopped answering altogether
        OtherDeviceError                   an engine was built for another device or version
      RunError (ValueError)                a run folder is incomplete or belongs to something else
      OutputError (OSError)                a result cannot be written
      NumericsError (ArithmeticError)      training produced NaN or infinity
      MemoryExhaustedError (MemoryError)   a device has too little memory for what was asked
      RankError (RuntimeError)             processes of one job lost each other, or disagree
      VerificationError (AssertionError)   an exported network breaks a stated bound
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwnasError(Exception):
    """Base of every error raised on purpose; its message says what to do next.

    Names from files may stand in it: control characters, which a terminal would obey, are written as escapes.
    """

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]).translate(ESCAPES) if self.args else ""


ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""For ``str.translate``: control characters as text."""


class UsageError(HwnasError, ValueError):
    """An argument is wrong."""


class UnknownNameError(UsageError, KeyError):
    """No registered thing has that name."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Builds the error for one unknown name, with the nearest known one."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        listed = ", ".join(names) if names else "none is installed"
        return cls(f"unknown {kind} '{name}'; available: {listed}.{hint}")


class InfeasibleBudgetError(UsageError):
    """The target lies below the fastest network of the space."""


class UnsupportedSpaceError(UsageError):
    """This part cannot treat that kind of search space."""


class MissingPackageError(HwnasError, ImportError):
    """A plug-in needs a package that is not installed."""


class SpaceError(HwnasError, ValueError):
    """A search space contradicts itself."""


class ArchitectureError(HwnasError, ValueError):
    """An architecture does not belong to its space."""


class MissingChoiceError(HwnasError, KeyError):
    """Gates do not cover every choice of the space."""


class TableError(HwnasError, ValueError):
    """A latency table cannot be used."""


class TableFormatError(TableError):
    """A row or the sidecar of a table is malformed."""


class MissingSignatureError(TableError, KeyError):
    """The table lacks operators of the space."""


class EnvironmentMismatchError(TableError):
    """The table was measured in another environment."""


class UnitError(TableError):
    """The numbers look like another unit than milliseconds."""


class DataError(HwnasError, ValueError):
    """A data set is empty, unreadable or inconsistent."""


class MeasurementError(HwnasError, RuntimeError):
    """A device could not run or time what it was given."""


class DeviceLostError(MeasurementError):
    """A device stopped answering altogether."""


class OtherDeviceError(MeasurementError):
    """An engine was built for another device, or by another version."""


class RunError(HwnasError, ValueError):
    """A run folder is incomplete or belongs to something else."""


class OutputError(HwnasError, OSError):
    """A result cannot be written."""


class NumericsError(HwnasError, ArithmeticError):
    """Training produced NaN or infinity."""


class MemoryExhaustedError(HwnasError, MemoryError):
    """A device has too little memory for what was asked."""


class RankError(HwnasError, RuntimeError):
    """Processes of one job lost each other, or disagree."""


class VerificationError(HwnasError, AssertionError):
    """An exported network breaks a stated bound."""
