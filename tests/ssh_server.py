"""A real OpenSSH server on loopback with keys of its own, and the client's words that reach it."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class SshServer:
    """``sshd`` in a folder of its own; ``client`` is what ``HWNAS_SSH`` must say."""

    def __init__(self, folder: Path) -> None:
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        self.user, self.folder = getpass.getuser(), folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        public = (folder / "host.pub").read_text().split()[:2]
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")
        (folder / "accepted").write_text((folder / "user.pub").read_text())
        (folder / "config").write_text(
            f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile /dev/null\n"
            f"IdentitiesOnly yes\nIdentityFile {folder}/user\nIdentityAgent none\n"
        )
        (folder / "sshd").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/accepted\n"
            "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin yes\nMaxStartups 100\nSetEnv SHLVL=9\n"  # bash reads no ~/.bashrc then
        )
        self.client = f"ssh -F {folder}/config"
        self.target = f"ssh://{self.user}@127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until it listens."""
        Path("/run/sshd").mkdir(exist_ok=True)
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        assert program
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, "-D", "-e", "-f", self.folder / "sshd"], stderr=log)
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < until, (self.folder / "log").read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        """Stops the server and breaks what is connected."""
        if self._process:
            for pid in children(self._process.pid):
                with suppress(ProcessLookupError):  # its connection may have ended just now
                    os.kill(pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            self._process = None


def children(parent: int) -> list[int]:
    """Processes of a server that serve a connection, and theirs; not the commands that they run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            head, _, tail = stat.read_text().rpartition(")")
            if int(tail.split()[1]) == parent and head.partition("(")[2].startswith("sshd"):
                found += [*children(int(stat.parent.name)), int(stat.parent.name)]
    return found


def why_not() -> str | None:
    """Why no server can be started here."""
    places = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    lacking = [name for name in ("ssh", "ssh-keygen", "sshd") if not shutil.which(name, path=places)]
    if lacking:
        return f"no program {', '.join(lacking)} here (apt-get install openssh-server)"
    if not Path("/run/sshd").exists() and os.getuid():
        return "/run/sshd is missing and only root can make it"
    return None


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """A running server; ``HWNAS_SSH`` reaches it meanwhile."""
    server = SshServer(folder)
    before = os.environ.get("HWNAS_SSH")
    try:
        server.start()
        os.environ["HWNAS_SSH"] = server.client
        yield server
    finally:
        server.stop()
        if before is None:
            os.environ.pop("HWNAS_SSH", None)
        else:
            os.environ["HWNAS_SSH"] = before
