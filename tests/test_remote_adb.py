"""The real adb client before a test double of a phone: what goes wrong with a phone, and how it is said."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hwnas.profilers.remote.adb import Adb
from hwnas.profilers.remote.errors import (
    DeadlineError,
    LostError,
    OfflineError,
    TransportError,
    UnauthorizedError,
    UnreachableError,
)
from hwnas.profilers.remote.targets import reachable

from hwnas.errors import DeviceLostError

pytestmark = pytest.mark.skipif(not shutil.which("adb"), reason="no program adb here (apt-get install adb)")

DOUBLE = runpy.run_path(str(Path(__file__).with_name("adb_device.py")))


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server of our own."""
    with DOUBLE["adb_server"](tmp_path_factory.mktemp("home")):
        yield


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes phones that behave as the given attributes say."""
    made = []

    def phone(**attributes: object) -> Any:
        device = DOUBLE["AdbDevice"]()
        made.append(device)
        for name, value in attributes.items():
            assert hasattr(device, name)
            setattr(device, name, value)
        return device

    yield phone
    for device in made:
        subprocess.run(["adb", "disconnect", device.serial], capture_output=True, timeout=10)
        device.stop()


@pytest.fixture
def phone(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture
def adb(phone: Any, tmp_path: Path) -> Adb:
    return Adb(phone.serial, scratch=str(tmp_path))


@pytest.mark.parametrize(("shell_v2", "services"), [(True, {"shell,v2"}), (False, {"exec"})])
def test_the_shell_that_the_phone_has_is_used(
    make: Callable[..., Any], tmp_path: Path, shell_v2: bool, services: set[str]
) -> None:
    phone = make(shell_v2=shell_v2)
    assert Adb(phone.serial, scratch=str(tmp_path)).run(["true"], timeout_s=20).code == 0
    asked = {service.partition(":")[0].removesuffix(",raw") for service in phone.opened}
    assert {",".join(part for part in name.split(",") if not part.startswith("TERM=")) for name in asked} == services


def test_without_exit_codes_nothing_is_left_on_the_phone(make: Callable[..., Any], tmp_path: Path) -> None:
    adb = Adb(make(shell_v2=False).serial, scratch=str(tmp_path))
    ended = adb.run(["sh", "-c", "cat; echo oops >&2; exit 4"], timeout_s=20, stdin=b"\r\n\0")
    assert (ended.code, ended.out, ended.err) == (4, b"\r\n\0", "oops\n")
    assert os.listdir(tmp_path) == []


def test_without_a_scratch_folder_standard_error_is_lost_and_nothing_else(make: Callable[..., Any]) -> None:
    adb = Adb(make(shell_v2=False).serial, scratch="/no/such/folder")
    ended = adb.run(["sh", "-c", "echo out; echo oops >&2; exit 4"], timeout_s=20)
    assert (ended.code, ended.out, ended.err) == (4, b"out\n", "")


def test_two_phones_are_told_apart(make: Callable[..., Any]) -> None:
    first, second = make(), make()
    Adb(first.serial).wait(10)
    opened = len(first.opened)
    Adb(second.serial).wait(10)
    assert len(first.opened) == opened
    assert second.opened
    assert {f"adb:{first.serial}", f"adb:{second.serial}"} <= {one.target for one in reachable()}


def test_a_phone_that_is_not_there_is_named_beside_those_that_are(adb: Adb) -> None:
    adb.wait(10)
    with pytest.raises(UnreachableError, match=rf"no usable device '1A2B' \(connected: .*{adb.serial} \(device\)"):
        Adb("1A2B").run(["true"], timeout_s=20)


def test_an_unanswered_dialogue_is_named_and_waited_for(make: Callable[..., Any]) -> None:
    phone = make(authorized=False)
    adb = Adb(phone.serial)
    with pytest.raises(UnauthorizedError, match="accept the dialogue"):
        adb.run(["true"], timeout_s=20)
    assert {one.target: one.state for one in reachable()}[adb.name] == "unauthorized"
    phone.accept()
    adb.wait(10)


def test_a_phone_that_does_not_say_hello_is_offline(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.profilers.remote.adb.CONNECT_S", 0.3)
    with pytest.raises(OfflineError, match="adb reconnect"):
        Adb(make(mute=True).serial).run(["true"], timeout_s=20)


def test_a_phone_that_hangs_meets_the_deadline(adb: Adb, phone: Any) -> None:
    adb.wait(10)
    phone.silent = True
    begun = time.monotonic()
    with pytest.raises(DeadlineError):
        adb.run(["true"], timeout_s=0.3)
    assert time.monotonic() - begun < 15


def test_a_pulled_cable_during_a_run(adb: Adb, phone: Any) -> None:
    """The client ends with code 0 or 1 then; neither is taken for the command's."""
    adb.wait(10)
    with adb.start(["sh", "-c", "echo a; exec sleep 60"], silence_s=30) as running:
        lines = running.lines()
        assert next(lines) == "a"
        phone.cut()
        with pytest.raises(LostError, match="go on") as caught:
            next(lines)
    assert isinstance(caught.value, DeviceLostError)
    adb.wait(20)
    assert adb.run(["echo", "again"], timeout_s=20).out == b"again\n"


@pytest.mark.parametrize("shell_v2", [True, False])
def test_a_cut_push_leaves_nothing_under_the_name(make: Callable[..., Any], tmp_path: Path, shell_v2: bool) -> None:
    phone = make(shell_v2=shell_v2)
    adb, folder, data = Adb(phone.serial, scratch=str(tmp_path)), tmp_path / "folder", os.urandom(1 << 20)
    adb.push({"data": b"before"}, str(folder))
    phone.cut_after = phone.pushed + (1 << 19)
    with pytest.raises(LostError):
        adb.push({"data": data}, str(folder))
    assert (folder / "data").read_bytes() == b"before"
    adb.wait(20)
    assert adb.push({"data": data}, str(folder)) == ("data",)
    assert adb.pull(f"{folder}/data") == data


def test_a_cached_push_sends_no_byte(adb: Adb, phone: Any, tmp_path: Path) -> None:
    adb.push({"data": os.urandom(100_000)}, str(tmp_path))
    files: dict[str, Path | bytes] = {"data": tmp_path / "data"}
    before = phone.pushed
    assert before >= 100_000
    assert adb.push(files, str(tmp_path)) == ()
    assert phone.pushed == before


def test_an_unwanted_option_is_no_option(adb: Adb, tmp_path: Path) -> None:
    """A folder of any printable name reaches the phone as one word."""
    folder = f"{tmp_path}/$(id) >hit ';x\""
    adb.push({"data": b"x"}, folder)
    assert adb.pull(f"{folder}/data") == b"x"
    adb.remove(folder)
    assert os.listdir(tmp_path) == []


def test_a_phone_that_never_comes_back(adb: Adb, phone: Any) -> None:
    adb.wait(10)
    phone.stop()
    begun = time.monotonic()
    with pytest.raises(LostError, match="plug it in again"):
        adb.wait(1)
    assert time.monotonic() - begun < 20


def test_the_end_of_the_adb_server_is_a_lost_phone(adb: Adb) -> None:
    adb.wait(10)
    with adb.start(["sh", "-c", "echo a; exec sleep 60"], silence_s=30) as running:
        lines = running.lines()
        next(lines)
        subprocess.run(["adb", "kill-server"], capture_output=True, timeout=10, check=True)
        with pytest.raises(LostError):
            next(lines)
    adb.wait(20)


def test_a_server_that_does_not_start_is_named(adb: Adb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "no port")
    with pytest.raises(TransportError, match="adb kill-server"):
        adb.run(["true"], timeout_s=20)
