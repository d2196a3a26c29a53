"""A test double of the device's side of adb: a program of ours that the real adb client takes for a phone.

It speaks the public protocol over TCP and runs commands with this computer's shell, in its files. One reading of the
protocol: it knows no USB, no key check and no SELinux, and its shell is not Android's.

Source: docs/dev/{protocol,sync,shell_protocol}.md and the headers of Android's adb.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_DATA = 1 << 16
VERSION = 0x01000001  # from here on no checksums
PUBLIC_KEY = 3  # the client has no more signatures and sends its key, for the dialogue
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)  # packets of shell v2


class AdbDevice:
    """Listens on a loopback port from construction to ``stop``; one thread a connection and one a stream.

    Attributes:
        shell_v2: Whether exit codes and standard error come apart (Android 7).
        authorized: False: asks for a key and accepts none, as before the dialogue is answered.
        cut_after: Breaks the connection after so many bytes of pushed files.
        mute: Does not even say hello.
        silent: Opens no stream any more, as a device that hangs.
        pushed: Bytes of files received so far.
        opened: The services that were asked for.
    """

    def __init__(self) -> None:
        self.shell_v2, self.authorized, self.silent, self.mute = True, True, False, False
        self.cut_after: int | None = None
        self.pushed = 0
        self.opened: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._connections: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection = Connection(self, self._server.accept()[0])
                self._connections.append(connection)
                threading.Thread(target=connection.serve, daemon=True).start()

    def accept(self) -> None:
        """The dialogue is answered."""
        self.authorized = True
        for connection in self._connections:
            connection.hello()

    def cut(self) -> None:
        """Breaks every connection, as a pulled cable does."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def stop(self) -> None:
        """Breaks every connection, takes no more, and ends what still runs."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Connection:
    """One adb server that is connected."""

    def __init__(self, device: AdbDevice, link: socket.socket) -> None:
        self.device, self.link = device, link
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as a cable: no waiting for more
        self.lock = threading.Lock()
        self.streams: dict[int, Stream] = {}

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        (number,) = struct.unpack("<I", command)
        header = struct.pack("<6I", number, first, second, len(data), 0, number ^ 0xFFFFFFFF)
        with self.lock:
            self.link.sendall(header + data)

    def close(self) -> None:
        with suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()
        for stream in list(self.streams.values()):
            stream.end()

    def serve(self) -> None:
        with suppress(OSError, EOFError), self.link.makefile("rb") as received:
            while True:
                command, first, second, size, _, _ = struct.unpack("<4s5I", exactly(received, 24))
                self.packet(command, first, second, exactly(received, size))
        self.close()

    def packet(self, command: bytes, first: int, second: int, data: bytes) -> None:
        """``first`` is the other side's number of a stream, ``second`` ours; ours is the same number."""
        if command == b"CNXN" or (command == b"AUTH" and first != PUBLIC_KEY):
            self.hello()
        elif command == b"OPEN":
            if not self.device.silent:
                stream = self.streams[first] = Stream(self, first, data.rstrip(b"\0").decode())
                threading.Thread(target=stream.serve, daemon=True).start()
        elif stream := self.streams.get(first):
            if command == b"OKAY":
                stream.may_send.release()
            elif command == b"WRTE":
                stream.receive(data)
                self.send(b"OKAY", first, first)
            elif command == b"CLSE":
                stream.end()

    def hello(self) -> None:
        if self.device.mute:
            return
        if not self.device.authorized:
            self.send(b"AUTH", 1, 0, b"\0" * 20)
            return
        features = ["cmd", "stat_v2", "ls_v2", "fixed_push_mkdir", *["shell_v2"] * self.device.shell_v2]
        said = f"device::ro.product.name=double;ro.product.model=Double;features={','.join(features)}"
        self.send(b"CNXN", VERSION, MAX_DATA, said.encode())


class Stream:
    """One service on a connection; what arrives for it goes through a pipe."""

    def __init__(self, connection: Connection, number: int, service: str) -> None:
        self.connection, self.number, self.service = connection, number, service
        self.may_send = threading.Semaphore(1)
        reader, writer = os.pipe()
        self.input, self.feed = os.fdopen(reader, "rb"), os.fdopen(writer, "wb", buffering=0)
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False
        connection.device.opened.append(service)

    def receive(self, data: bytes) -> None:
        with suppress(OSError, ValueError):
            self.feed.write(data)

    def end(self) -> None:
        """The other side is gone: like adbd, hang up on the command's first process."""
        if self.ended:
            return
        self.ended = True
        self.connection.streams.pop(self.number, None)
        self.may_send.release()
        self.feed.close()
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_DATA):
            self.may_send.acquire()
            if self.ended:
                raise EOFError
            self.connection.send(b"WRTE", self.number, self.number, data[start : start + MAX_DATA])

    def serve(self) -> None:
        with suppress(OSError, EOFError, ValueError):
            self.connection.send(b"OKAY", self.number, self.number)
            kind, _, command = self.service.partition(":")
            if kind == "sync":
                Sync(self).serve()
            elif kind.startswith("shell,v2"):
                self.shell_v2(command)
            elif kind.partition(",")[0] in ("shell", "exec"):
                self.raw(command)
            self.may_send.acquire(timeout=10)
            if not self.ended:
                self.connection.send(b"CLSE", self.number, self.number)
        self.end()
        self.input.close()

    def start(self, command: str, stderr: int) -> subprocess.Popen[bytes]:
        heard = "--default-signal=HUP"  # under nohup, which a phone is not, the shell could not hear our end
        self.process = subprocess.Popen(
            ["/usr/bin/env", heard, "sh", "-c", command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
        )  # fmt: skip
        self.connection.device.processes.append(self.process)
        return self.process

    def raw(self, command: str) -> None:
        """One stream each way, as before Android 7: no end of input, no exit code."""
        with self.start(command, subprocess.STDOUT) as process:
            assert process.stdout is not None
            while piece := os.read(process.stdout.fileno(), MAX_DATA):
                self.write(piece)

    def shell_v2(self, command: str) -> None:
        lock = threading.Lock()

        def copy(number: int, pipe: object) -> None:
            with suppress(OSError, EOFError, ValueError):
                while piece := os.read(pipe.fileno(), MAX_DATA // 2):  # type: ignore[attr-defined]
                    with lock:
                        self.write(struct.pack("<BI", number, len(piece)) + piece)

        with self.start(command, subprocess.PIPE) as process:
            threading.Thread(target=self.shell_input, args=(process,), daemon=True).start()
            copies = [
                threading.Thread(target=copy, args=pair, daemon=True)
                for pair in ((STDOUT, process.stdout), (STDERR, process.stderr))
            ]
            for thread in copies:
                thread.start()
            for thread in copies:
                thread.join()
            self.write(struct.pack("<BIB", EXIT, 1, process.wait() & 0xFF))

    def shell_input(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with suppress(OSError, EOFError, ValueError):
            while True:
                number, size = struct.unpack("<BI", exactly(self.input, 5))
                data = exactly(self.input, size)
                if number == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
                elif number == CLOSE_STDIN:
                    process.stdin.close()


class Sync:
    """The service that copies files."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.device = stream, stream.connection.device

    def serve(self) -> None:
        while True:
            name, size = struct.unpack("<4sI", exactly(self.stream.input, 8))
            argument = exactly(self.stream.input, size).decode()
            if name == b"QUIT":
                return
            if name in (b"STAT", b"STA2", b"LST2"):
                self.stat(name, Path(argument))
            elif name == b"SEND":
                self.send(Path(argument.rpartition(",")[0]))
            else:
                self.fail(f"no such request: {name!r}")

    def stat(self, name: bytes, path: Path) -> None:
        try:
            seen = path.stat()
        except OSError as error:
            self.stream.write(struct.pack("<4s3I", name, 0, 0, 0) if name == b"STAT" else missing(name, error))
            return
        if name == b"STAT":
            self.stream.write(struct.pack("<4s3I", name, seen.st_mode, seen.st_size & 0xFFFFFFFF, int(seen.st_mtime)))
        else:
            numbers = (0, seen.st_dev, seen.st_ino, seen.st_mode, 1, 0, 0, seen.st_size, 0, int(seen.st_mtime), 0)
            self.stream.write(struct.pack("<4sI2Q4IQ3q", name, *numbers))

    def send(self, path: Path) -> None:
        """Writes as it comes; after an error it reads on to the end of the file, as adbd does."""
        problem = ""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("wb", buffering=0))
            except OSError as error:
                problem = f"couldn't create file: {error.strerror}"
            while True:
                name, size = struct.unpack("<4sI", exactly(self.stream.input, 8))
                if name == b"DONE":
                    break
                data = exactly(self.stream.input, size)
                self.device.pushed += size
                if self.device.cut_after is not None and self.device.pushed > self.device.cut_after:
                    self.device.cut_after = None
                    self.stream.connection.close()
                    raise EOFError
                try:
                    if not problem and file.write(data) < size:
                        file.write(data)  # the second try says why
                except OSError as error:
                    problem = f"write failed: {error.strerror}"
        if problem:
            path.unlink(missing_ok=True)
            self.fail(problem)
        else:
            self.stream.write(struct.pack("<4sI", b"OKAY", 0))

    def fail(self, message: str) -> None:
        self.stream.write(struct.pack("<4sI", b"FAIL", len(message)) + message.encode())


def missing(name: bytes, error: OSError) -> bytes:
    """The answer to a question about a path that is not there."""
    return struct.pack("<4sI2Q4IQ3q", name, error.errno or 2, *[0] * 10)


def exactly(file: object, size: int) -> bytes:
    """So many bytes, or ``EOFError``."""
    data = file.read(size) if size else b""  # type: ignore[attr-defined]
    if len(data) < size:
        raise EOFError
    return data


@contextmanager
def adb_server(home: Path) -> Iterator[None]:
    """Environment of an adb server of one's own; only that one is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    mine = {"ANDROID_ADB_SERVER_PORT": port, "HOME": str(home), "ADB_MDNS": "0", "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553"}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["adb", "kill-server"], timeout=10, capture_output=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
