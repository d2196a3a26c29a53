"""What every way to a device must do: this computer, a real ssh server, the real adb client before a test double."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hwnas.profilers.remote.adb import Adb
from hwnas.profilers.remote.errors import DeadlineError, NoSpaceError, NotExecutableError, TransportError
from hwnas.profilers.remote.ssh import Ssh
from hwnas.profilers.remote.targets import reachable
from hwnas.profilers.remote.transport import Local, ShellTransport

from hwnas.errors import MeasurementError, UsageError

HERE = Path(__file__).parent
KINDS = ["local", "ssh", "adb-v2", "adb-v1", "mksh", "busybox"]
ODD = ["a b", "'", '"', "$HOME", "`id`", "\\", "*", "new\nline", "-n", "", "ä;&|<>()#~!"]
"""Words that a shell would change if one quote were missing."""

HOST = """
import sys, time
from hwnas.profilers.remote.targets import create_target
target = create_target(sys.argv[1])
running = target.transport.start(["sh", "-c", 'echo $$ >"$1"; exec sleep 60', "sh", sys.argv[2]], silence_s=60)
time.sleep(60)
"""
"""A program that starts a command on a device and is killed."""


class OtherShell(Local):
    """This computer with Android's shell, or with the programs of a small board; files travel as to a board."""

    def __init__(self, shell: Sequence[str], path: str) -> None:
        self.shell, self.path, self.name = shell, path, shell[0]

    def _words(self, words: Sequence[str]) -> list[str]:
        assert words[0] == "sh"
        return ["env", f"PATH={self.path}", *self.shell, *words[1:]]

    _send = Ssh._send


class Devices:
    """Starts servers when a test first asks for one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.known: dict[str, ShellTransport] = {"local": Local()}
        self.adb_up = False

    def __getitem__(self, kind: str) -> ShellTransport:
        if kind not in self.known:
            make = {"ssh": self.ssh, "mksh": self.shell, "busybox": self.shell}.get(kind, self.adb)
            self.known[kind] = make(kind)
        return self.known[kind]

    def shell(self, kind: str) -> ShellTransport:
        if not (program := shutil.which(kind)):
            pytest.skip(f"no program {kind} here (apt-get install {kind})")
        if kind == "mksh":
            return OtherShell([program], os.environ["PATH"])
        applets = self.folder / "busybox"
        applets.mkdir()
        for name in subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split():
            (applets / name).symlink_to(program)
        return OtherShell([str(applets / "sh")], str(applets))

    def ssh(self, kind: str) -> ShellTransport:
        module = runpy.run_path(str(HERE / "ssh_server.py"))
        if reason := module["why_not"]():
            pytest.skip(reason)
        (self.folder / "ssh").mkdir()
        server = self.stack.enter_context(module["ssh_server"](self.folder / "ssh"))
        transport = Ssh("127.0.0.1", user=server.user, port=server.port)
        self.stack.callback(transport.close)
        return transport

    def adb(self, kind: str) -> ShellTransport:
        if not shutil.which("adb"):
            pytest.skip("no program adb here (apt-get install adb)")
        module: dict[str, Any] = runpy.run_path(str(HERE / "adb_device.py"))
        if not self.adb_up:
            self.stack.enter_context(module["adb_server"](self.folder))
            self.adb_up = True
        device = module["AdbDevice"]()
        device.shell_v2 = kind == "adb-v2"
        self.stack.callback(device.stop)
        return Adb(device.serial, scratch=str(self.folder))


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    with ExitStack() as stack:
        yield Devices(tmp_path_factory.mktemp("d"), stack)


@pytest.fixture(params=KINDS)
def transport(request: pytest.FixtureRequest, devices: Devices) -> ShellTransport:
    return devices[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder of the device (all devices of this file are this computer) with a name that needs quotes."""
    return str(tmp_path / "it's a $folder")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Mounts file systems of 256 KiB."""
    mounted: list[Path] = []

    def mount(options: str = "") -> str:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size=256k{options}", "tmpfs", str(place)]
        if os.getuid() or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("only root may mount a small disk, and not in every container")
        mounted.append(place)
        return str(place / "folder")

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestContract:
    """Runs over every transport."""

    def test_the_exit_code_comes_back(self, transport: ShellTransport) -> None:
        for code in (0, 1, 255):  # ssh ends with 255 and adb with 1 when the connection broke
            assert transport.run(["sh", "-c", f"exit {code}"], timeout_s=20).code == code

    def test_a_signal_is_128_plus_its_number(self, transport: ShellTransport) -> None:
        assert transport.run(["sh", "-c", "kill -9 $$"], timeout_s=20).code == 128 + 9

    def test_a_missing_program_is_code_127_and_not_a_lost_device(self, transport: ShellTransport) -> None:
        ended = transport.run(["/no/such/program"], timeout_s=20)
        assert ended.code == 127
        assert "not found" in ended.err

    def test_the_two_outputs_stay_apart(self, transport: ShellTransport) -> None:
        ended = transport.run(["sh", "-c", "echo one; echo two >&2; exit 3"], timeout_s=20)
        assert (ended.code, ended.out, ended.err) == (3, b"one\n", "two\n")

    def test_every_word_arrives_as_it_is(self, transport: ShellTransport) -> None:
        ended = transport.run(["printf", "%s\\0", *ODD], timeout_s=20)
        assert ended.out.decode().split("\0") == [*ODD, ""]

    @pytest.mark.parametrize("size", [1, 300_000])
    def test_bytes_go_in_and_come_out(self, transport: ShellTransport, size: int) -> None:
        data = (bytes(range(256)) + b"\x1e\r\n\x1e") * (size // 260 + 1)
        ended = transport.run(["cat"], timeout_s=20, stdin=data[:size])
        assert (ended.code, ended.out) == (0, data[:size])

    def test_without_input_a_reader_ends(self, transport: ShellTransport) -> None:
        assert transport.run(["cat"], timeout_s=20).out == b""

    def test_what_a_command_leaves_behind_is_not_waited_for(self, transport: ShellTransport) -> None:
        if "adb" in transport.name and "shell_v2" not in getattr(transport, "features", ()):
            pytest.skip("before Android 7 the end of the only stream is the end")
        begun = time.monotonic()
        assert transport.run(["sh", "-c", "sleep 3 & echo a"], timeout_s=20).out == b"a\n"
        assert time.monotonic() - begun < 2.9

    def test_a_slow_command_ends_by_the_deadline(self, transport: ShellTransport, tmp_path: Path) -> None:
        begun = time.monotonic()
        with pytest.raises(DeadlineError, match=r"within 0\.7 s") as caught:
            transport.run(["sh", "-c", 'echo $$ >"$1"; exec sleep 60', "sh", str(tmp_path / "pid")], timeout_s=0.7)
        assert time.monotonic() - begun < 10
        assert isinstance(caught.value, (MeasurementError, TimeoutError))
        if (tmp_path / "pid").exists():  # not on a machine so slow that it had not begun
            self.gone(int((tmp_path / "pid").read_text()))

    def gone(self, pid: int) -> None:
        until = time.monotonic() + 60  # a machine may stand still for a while
        while alive(pid):
            assert time.monotonic() < until, "the command is still running on the device"
            time.sleep(0.02)

    def test_lines_come_while_the_command_runs(self, transport: ShellTransport, tmp_path: Path) -> None:
        script = 'echo a; while [ ! -e "$1" ]; do sleep 0.05; done; echo; printf "b\\036c"; exit 5'
        with transport.start(["sh", "-c", script, "sh", str(tmp_path / "go")], silence_s=20) as running:
            lines = running.lines()
            assert next(lines) == "a"
            (tmp_path / "go").touch()
            assert list(lines) == ["", "b\x1ec"]
            assert running.end() == 5
            assert running.end() == 5

    def test_the_end_is_known_when_lines_are_left_unread(self, transport: ShellTransport) -> None:
        with transport.start(["sh", "-c", "echo a; echo b; exit 5"], silence_s=20) as running:
            assert next(running.lines()) == "a"
            assert running.end() == 5

    def test_a_running_command_can_be_killed(self, transport: ShellTransport) -> None:
        script = "echo $$; exec sleep 60"
        with transport.start(["sh", "-c", script], silence_s=30) as running:
            pid = int(next(running.lines()))
            assert alive(pid)
            running.kill()
        self.gone(pid)

    def test_lines_end_by_the_deadline(self, transport: ShellTransport) -> None:
        begun = time.monotonic()
        with (
            transport.start(["sh", "-c", "echo a; exec sleep 60"], silence_s=0.5) as running,
            pytest.raises(DeadlineError),
        ):
            list(running.lines())
        assert time.monotonic() - begun < 10

    def test_pushed_files_arrive_and_are_cached(self, transport: ShellTransport, folder: str, tmp_path: Path) -> None:
        (tmp_path / "tool").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "tool").chmod(0o755)
        data = os.urandom(200_000)
        files: dict[str, Path | bytes] = {"run": tmp_path / "tool", "data.bin": data, "empty": b""}
        assert set(transport.push(files, folder)) == {"run", "data.bin", "empty"}
        assert transport.run([f"{folder}/run"], timeout_s=20).out == b"ran\n"
        assert transport.pull(f"{folder}/data.bin") == data
        assert sorted(os.listdir(folder)) == ["data.bin", "empty", "run"]
        Path(folder, "run").chmod(0o644)
        assert transport.push(files, folder) == ()
        assert os.access(f"{folder}/run", os.X_OK)
        other = bytes([data[0] ^ 1]) + data[1:]
        with open(f"{folder}/data.bin", "rb") as before:  # a file in use is replaced, not written into
            assert transport.push({**files, "data.bin": other}, folder) == ("data.bin",)
            assert before.read() == data
        assert Path(folder, "data.bin").read_bytes() == other

    def test_a_damaged_file_is_sent_again(self, transport: ShellTransport, folder: str) -> None:
        transport.push({"data": b"good"}, folder)
        Path(folder, "data").write_bytes(b"bad!")
        assert transport.push({"data": b"good"}, folder) == ("data",)
        assert transport.pull(f"{folder}/data") == b"good"

    def test_what_a_killed_push_left_is_removed_after_a_day(self, transport: ShellTransport, folder: str) -> None:
        for name, age_s in {"old": 90_000, "new": 80_000}.items():
            left = Path(folder, f".incoming-{name}")
            left.mkdir(parents=True)
            (left / "part").write_bytes(b"x")
            os.utime(left, (time.time() - age_s,) * 2)
        transport.push({"data": b"good"}, folder)
        assert sorted(os.listdir(folder)) == [".incoming-new", "data"]

    def test_what_is_damaged_on_the_way_is_not_taken(
        self, transport: ShellTransport, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        send = transport._send

        def damaged(paths: list[Path], to: str, timeout_s: float) -> None:
            send(paths, to, timeout_s)
            Path(to, "data").write_bytes(b"bad!")

        monkeypatch.setattr(transport, "_send", damaged)
        with pytest.raises(TransportError, match="'data' arrived damaged"):
            transport.push({"data": b"good"}, folder)
        assert os.listdir(folder) == []

    def test_two_pushes_at_once_leave_whole_files(self, transport: ShellTransport, folder: str) -> None:
        data = os.urandom(1 << 20)
        threads = [threading.Thread(target=transport.push, args=({"data": data}, folder)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.listdir(folder) == ["data"]
        assert transport.pull(f"{folder}/data") == data

    @pytest.mark.parametrize("name", ["../up", "a/b", "-rf", "", ".hidden", "a b", "a\nb"])
    def test_only_plain_names_are_pushed(self, transport: ShellTransport, folder: str, name: str) -> None:
        with pytest.raises(UsageError, match="cannot push a file named"):
            transport.push({name: b""}, folder)

    def test_a_full_disk_is_named(self, transport: ShellTransport, small_disk: Callable[..., str]) -> None:
        place = small_disk()
        with pytest.raises(NoSpaceError, match="no space left"):
            transport.push({"data": os.urandom(1 << 20)}, place)
        assert os.listdir(place) == []

    def test_a_folder_that_executes_nothing_is_named(
        self, transport: ShellTransport, small_disk: Callable[..., str], tmp_path: Path
    ) -> None:
        place = small_disk(",noexec")
        (tmp_path / "tool").touch()
        (tmp_path / "tool").chmod(0o755)
        with pytest.raises(NotExecutableError, match="noexec"):
            transport.push({"tool": tmp_path / "tool"}, place)
        assert transport.push({"data": b"x"}, place) == ("data",)

    def test_a_folder_that_cannot_be_made_is_named(self, transport: ShellTransport, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(TransportError, match=r"push to .* failed with code 3 .*check that the folder"):
            transport.push({"data": b"x"}, str(tmp_path / "file" / "folder"))

    def test_a_missing_file_is_an_error(self, transport: ShellTransport, folder: str) -> None:
        with pytest.raises(TransportError, match="No such file"):
            transport.pull(f"{folder}/none")

    def test_remove(self, transport: ShellTransport, folder: str) -> None:
        transport.push({"data": b"x"}, folder)
        transport.remove(folder)
        assert not os.path.exists(folder)
        transport.remove(folder)
        for wrong in ("/", "//", ".", "a/..", "", "-rf"):
            with pytest.raises(UsageError):
                transport.remove(wrong)

    def test_waiting_for_a_device_that_is_there(self, transport: ShellTransport) -> None:
        transport.wait(10)

    def test_the_command_dies_with_the_program_that_started_it(self, transport: ShellTransport, tmp_path: Path) -> None:
        if "adb" in transport.name and "shell_v2" not in getattr(transport, "features", ()):
            pytest.skip("before Android 7 a silent command lives on until its own deadline")
        if isinstance(transport, OtherShell):
            pytest.skip("the program that is killed here does not know this device")
        pid = tmp_path / "pid"
        with subprocess.Popen([sys.executable, "-c", HOST, transport.name, str(pid)], start_new_session=True) as host:
            until = time.monotonic() + 20
            while not (pid.exists() and pid.read_text().strip()):
                assert time.monotonic() < until
                time.sleep(0.02)
            assert alive(int(pid.read_text()))
            os.kill(host.pid, signal.SIGKILL)
        self.gone(int(pid.read_text()))


def test_a_broken_end_is_no_end() -> None:
    """The shell of a command is killed: nothing says how the command ended."""
    with pytest.raises(TransportError, match="stopped from outside"):
        Local().run(["sh", "-c", "kill -9 $PPID"], timeout_s=20)


def test_what_is_reachable(devices: Devices) -> None:
    ssh, adb = devices["ssh"], devices["adb-v2"]
    adb.wait(10)
    gone = f"{ssh.name.rpartition(':')[0]}:1"
    found = {one.target: one for one in reachable([ssh.name, gone])}
    assert found["local"].state == found[ssh.name].state == found[adb.name].state == "ready"
    assert found[adb.name].about == "Double"
    assert os.uname().nodename in found[ssh.name].about
    assert found[gone].state == "unreachable"
    assert "refused" in found[gone].about
