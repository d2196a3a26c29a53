"""What can go wrong between this computer and a device.

All are ``MeasurementError``; those below ``UnreachableError`` are also ``DeviceLostError``: catch it,
call ``Transport.wait`` and go on where the work stopped::

    TransportError (MeasurementError)
      MissingToolError                      adb or ssh is not installed here
      UnreachableError (DeviceLostError)    the device is not there
        UnauthorizedError                   it is there and refuses this computer
        OfflineError                        adb lists it and gets no answer
        LostError                           it answered before, and the connection broke
      DeadlineError (TimeoutError)          it took longer than it may
      NoSpaceError                          its file system is full
      NotExecutableError                    nothing may be executed in the folder
      RunnerError                           the runner gave up
"""

from __future__ import annotations

from hwnas.errors import DeviceLostError, MeasurementError


class TransportError(MeasurementError):
    """A device refused a command or a file."""


class MissingToolError(TransportError):
    """A program of this computer that reaches devices is not installed."""


class UnreachableError(TransportError, DeviceLostError):
    """The device is not there."""


class UnauthorizedError(UnreachableError):
    """The device refuses this computer's key, or this computer the device's."""


class OfflineError(UnreachableError):
    """Adb lists the device, and it does not answer."""


class LostError(UnreachableError):
    """The connection broke during work."""


class DeadlineError(TransportError, TimeoutError):
    """The device took longer than it may."""


class NoSpaceError(TransportError):
    """The device's file system is full."""


class NotExecutableError(TransportError):
    """Nothing may be executed in the folder."""


class RunnerError(TransportError):
    """The runner gave up on the device.

    Attributes:
        code: Its exit code; 128 + n after signal n.
        model: The model it was working on; -1 for none.
    """

    def __init__(self, message: str, *, code: int, model: int = -1) -> None:
        super().__init__(message)
        self.code, self.model = code, model
