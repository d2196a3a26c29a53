"""Exported files, loaded to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from hwnas.errors import RunError, UsageError
from hwnas.latency.measure import time_rounds
from hwnas.latency.measurement import Measurement, summarise
from hwnas.plugins import ManySession, Session, create_profiler
from hwnas.tensorrt_engine import FLAVOURS

from .engines import cannot_run, read_engine, require_capability, require_version


class OpenSession(Session, Protocol):
    """A session that knows which images it takes."""

    input_shape: tuple[int, ...]
    batches: tuple[int, int | None]


class LoadedNetwork:
    """An exported network, ready to run; a context manager that frees it, and a ``hwnas.plugins.Session``.

    Attributes:
        metadata: What the exporter wrote: classes, normalisation, architecture, predicted latency and more.
        input_shape: Channels, height, width.
        batches: The least and the most images of a run; None for any number.
    """

    def __init__(self, session: OpenSession, metadata: Mapping[str, str]) -> None:
        self._session: OpenSession | None = session
        self.metadata = metadata
        self.input_shape, self.batches = session.input_shape, session.batches

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits of shape ``(batch, classes)``, float32.

        Args:
            images: Float32, shape ``(batch, channels, height, width)``, normalised as the metadata say: pixels from 0
                to 1, less ``mean``, over ``std``.

        Raises:
            UsageError: Images of another type or shape, or the network is closed.
            MeasurementError: The runtime fails.
        """
        session, (least, most) = self._opened(), self.batches
        shape, dtype = np.shape(images), getattr(images, "dtype", type(images).__name__)
        fits = shape[1:] == self.input_shape and least <= shape[0] and (most is None or shape[0] <= most)
        if dtype != np.float32 or not fits:
            number = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            raise UsageError(
                f"images of type {dtype} and shape {shape} given; the network takes float32 of shape "
                f"({number}, {', '.join(map(str, self.input_shape))}): pixels from 0 to 1, less 'mean', over 'std' of "
                "its metadata."
            )
        return session.run(images)

    def time(self) -> Measurement:
        """Latency on this device in milliseconds, after warm-up: of one image, or of the batch where it is fixed.

        Raises:
            MeasurementError: The runtime fails.
        """
        return summarise(self.time_rounds())

    def time_rounds(self) -> list[list[float]]:
        """Run times in milliseconds, by round."""
        return time_rounds(self._opened())

    @property
    def many(self) -> bool:
        """Whether ``run`` takes several batches at once; see ``hwnas.plugins.ManySession``."""
        session = self._opened()
        return isinstance(session, ManySession) and session.many

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """The time of every run, for about ``budget_ms``."""
        return self._opened().time_ms(budget_ms=budget_ms)

    def close(self) -> None:
        """Frees what the device holds; closing again does nothing."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> OpenSession:
        if self._session is None:
            raise UsageError("this network is closed. Load it again with hwnas.deploy.load(PATH).")
        return self._session


def load(path: Path | str, **options: Any) -> LoadedNetwork:
    """An exported network, ready to run.

    Args:
        path: ``.onnx``, run by ONNX Runtime; or ``.engine``, run by the flavour of TensorRT that built it. The code in
            an engine is trusted: load those only that you built, or whose builder you trust.
        options: Of the runtime's profiler, such as ``device`` (``cpu`` or the name of an execution provider for
            ``.onnx``, ``cuda`` or ``cuda:N`` for engines) and ``threads`` (for ``.onnx``; 1 if not given).

    Raises:
        UsageError: A file of another kind, or an option that the runtime does not have.
        RunError: There is no such file, or an engine that has changed or lacks its document.
        MissingPackageError: The runtime is not installed.
        OtherDeviceError: An engine of another version, or for another GPU; names the command that builds it again. Or
            there is no GPU.
        MeasurementError: The runtime refuses the file.
    """
    path = Path(path)
    openers: dict[str, Callable[..., LoadedNetwork]] = {".onnx": _onnx, ".engine": _engine}
    if path.suffix not in openers:
        raise UsageError(f"{path} is no exported network; files of these kinds are: {', '.join(openers)}.")
    if not path.is_file():
        raise RunError(f"{path} does not exist. 'hwnas export RUN' writes such a file.")
    return openers[path.suffix](path, options)


def _onnx(path: Path, options: Mapping[str, Any]) -> LoadedNetwork:
    profiler: Any = create_profiler("onnxruntime", **options)
    session = profiler.open(path.read_bytes())
    return LoadedNetwork(session, session.metadata)


def _engine(path: Path, options: Mapping[str, Any]) -> LoadedNetwork:
    document, engine = read_engine(path)
    require_version(path, document, FLAVOURS[document["flavour"]].load().__version__)
    try:
        profiler: Any = create_profiler(document["flavour"], **options)
    except UsageError as error:
        raise cannot_run(path, document, error) from error
    require_capability(path, document, profiler.environment().details["compute_capability"])
    return LoadedNetwork(profiler.open(engine), document["metadata"])
