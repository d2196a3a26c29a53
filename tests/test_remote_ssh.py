"""Real OpenSSH on loopback: keys, hosts, lost connections, greetings."""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hwnas.profilers.remote.errors import DeadlineError, LostError, UnauthorizedError, UnreachableError
from hwnas.profilers.remote.ssh import Ssh

from hwnas.errors import UsageError

SERVER = runpy.run_path(str(Path(__file__).with_name("ssh_server.py")))
WHY_NOT = SERVER["why_not"]()

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    with SERVER["ssh_server"](tmp_path) as server:
        yield server


@pytest.fixture
def ssh(server: Any) -> Iterator[Ssh]:
    transport = Ssh("127.0.0.1", user=server.user, port=server.port)
    yield transport
    transport.close()


def test_commands_share_one_connection(ssh: Ssh, server: Any) -> None:
    for _ in range(3):
        ssh.run(["true"], timeout_s=20)
    assert (server.folder / "log").read_text().count("Accepted publickey") == 1
    sockets = ssh._sockets
    assert sockets
    assert len(list(sockets.iterdir())) == 1
    ssh.close()
    assert not sockets.exists()
    assert ssh.run(["true"], timeout_s=20).code == 0


def test_an_unknown_host_is_not_trusted(ssh: Ssh, server: Any) -> None:
    (server.folder / "known").write_text("")
    with pytest.raises(UnauthorizedError, match="key is not the known one"):
        ssh.run(["true"], timeout_s=20)


def test_a_changed_host_is_not_trusted(ssh: Ssh, server: Any) -> None:
    public = (server.folder / "user.pub").read_text().split()[:2]
    (server.folder / "known").write_text(f"[127.0.0.1]:{server.port} {' '.join(public)}\n")
    with pytest.raises(UnauthorizedError, match="key is not the known one"):
        ssh.run(["true"], timeout_s=20)


def test_a_key_that_the_host_does_not_know(ssh: Ssh, server: Any) -> None:
    (server.folder / "accepted").write_text("")
    with pytest.raises(UnauthorizedError, match="ssh-copy-id"):
        ssh.run(["true"], timeout_s=20)


def test_a_host_that_is_not_there(ssh: Ssh, server: Any) -> None:
    server.stop()
    with pytest.raises(UnreachableError, match="refused") as caught:
        ssh.run(["true"], timeout_s=20)
    assert not isinstance(caught.value, LostError)


def test_a_connection_that_breaks_and_comes_back(ssh: Ssh, server: Any) -> None:
    ssh.wait(10)
    with ssh.start(["sh", "-c", "echo a; exec sleep 60"], silence_s=30) as running:
        lines = running.lines()
        assert next(lines) == "a"
        server.stop()
        with pytest.raises(LostError, match="go on"):
            next(lines)
    with pytest.raises(LostError):
        ssh.wait(0.5)
    server.start()
    ssh.wait(20)
    assert ssh.run(["echo", "again"], timeout_s=20).out == b"again\n"


def test_a_push_that_breaks_leaves_nothing_under_the_name(
    ssh: Ssh, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, send = tmp_path / "folder", ssh._send

    def breaking(paths: list[Path], to: str, timeout_s: float) -> None:
        send(paths, to, timeout_s)
        os.truncate(f"{to}/data", 10)
        server.stop()

    monkeypatch.setattr(ssh, "_send", breaking)
    with pytest.raises(LostError):
        ssh.push({"data": bytes(1000)}, str(folder))
    assert not (folder / "data").exists()
    monkeypatch.undo()
    os.environ["HWNAS_SSH"] = server.client
    server.start()
    assert ssh.push({"data": bytes(1000)}, str(folder)) == ("data",)


def test_a_login_shell_that_greets_does_not_get_into_the_output(server: Any) -> None:
    server.stop()
    with (server.folder / "sshd").open("a") as config:
        config.write('ForceCommand echo Welcome; echo to the board >&2; eval "$SSH_ORIGINAL_COMMAND"\n')
    server.start()
    ssh = Ssh("127.0.0.1", user=server.user, port=server.port)
    ended = ssh.run(["printf", "exact"], timeout_s=20)
    ssh.close()
    assert (ended.code, ended.out) == (0, b"exact")


def test_a_server_that_does_not_answer_meets_the_deadline(server: Any) -> None:
    """The connection is accepted by the kernel, and nobody reads."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ssh = Ssh("127.0.0.1", user=server.user, port=deaf.getsockname()[1])
        begun = time.monotonic()
        with pytest.raises(DeadlineError):
            ssh.run(["true"], timeout_s=0.5)
        ssh.close()
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("host", ["-oProxyCommand=touch hit", "a b", "", "a;b"])
def test_a_host_cannot_be_an_option(host: str) -> None:
    with pytest.raises(UsageError, match="no host or user"):
        Ssh(host)
    with pytest.raises(UsageError, match="no host or user"):
        Ssh("board", user=host or "-l")
