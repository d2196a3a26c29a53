"""Clusters and cores out of kernel files, on imitated phones and boards."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest
from hwnas.profilers.remote.topology import (
    CPUS,
    READ_COMMAND,
    clusters_of,
    format_cores,
    read_clusters,
    select_cores,
    split_files,
)

from hwnas.errors import MeasurementError, UsageError

write_root = runpy.run_path(str(Path(__file__).with_name("fake_root.py")))["write_root"]

FLAGSHIP = "a55:4:1804800,a78:3:2419200,x1:1:2841600"


def imitate(folder: Path, layout: str, offline: tuple[int, ...] = (), **more: str) -> dict[str, str]:
    """Kernel files of a layout, as a device would print them."""
    write_root(folder, layout, offline=offline)
    files = {f"/{path.relative_to(folder)}": path.read_text() for path in folder.rglob("*") if path.is_file()}
    return files | more


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (FLAGSHIP, {"prime": (7,), "big": (4, 5, 6), "little": (0, 1, 2, 3)}),
        ("a55:6:1800000,a76:2:2200000", {"prime": (6, 7), "big": (6, 7), "little": (0, 1, 2, 3, 4, 5)}),
        ("x1:1:2800000,a76:3:2200000,a55:4:1800000", {"prime": (0,), "big": (1, 2, 3), "little": (4, 5, 6, 7)}),
        ("a76:4:2400000", {"prime": (0, 1, 2, 3), "big": (0, 1, 2, 3)}),
        # equal parts at two clocks, equal clocks of two parts
        ("a53:4:1400000,a53:4:2000000", {"big": (4, 5, 6, 7), "little": (0, 1, 2, 3)}),
        ("a510:3:2000000,a715:2:2800000,a78:2:2800000,x3:1:3200000", {"prime": (7,), "little": (0, 1, 2)}),
    ],
)
def test_clusters_have_names(tmp_path: Path, layout: str, expected: dict[str, tuple[int, ...]]) -> None:
    clusters = read_clusters(imitate(tmp_path, layout))
    assert {name: select_cores(name, clusters) for name in expected} == expected
    assert sorted(core for cluster in clusters for core in cluster.cores) == list(range(num_cores(layout)))


def num_cores(layout: str) -> int:
    """Cores of all parts of a layout."""
    return sum(int(part.split(":")[1]) for part in layout.split(","))


def test_capacity_goes_before_the_clock(tmp_path: Path) -> None:
    """A little core may have the higher clock."""
    layout = "a55:2:2400000,x1:2:2000000"
    capacities = {f"{CPUS}/cpu{core}/cpu_capacity": str(1024 if core > 1 else 300) for core in range(4)}
    clusters = read_clusters(imitate(tmp_path, layout, **capacities))
    assert select_cores("prime", clusters) == (2, 3)
    assert [each.capacity for each in clusters] == [300, 1024]
    capacities.popitem()  # not known of every core: the clock decides
    assert select_cores("prime", read_clusters(imitate(tmp_path, layout, **capacities))) == (0, 1)


def test_the_register_goes_before_the_text(tmp_path: Path) -> None:
    """MIDR: implementer in bits 24 to 31, part in bits 4 to 15."""
    files = imitate(tmp_path, "a55:1:1800000")
    assert read_clusters(files)[0].part == "0x41:0xd05"
    files[f"{CPUS}/cpu0/regs/identification/midr_el1"] = "0x00000000510f8010\n"
    assert read_clusters(files)[0].part == "0x51:0x801"


def test_cores_that_are_off_are_left_out(tmp_path: Path) -> None:
    clusters = read_clusters(imitate(tmp_path, FLAGSHIP, offline=(4, 7)))
    assert [each.cores for each in clusters] == [(0, 1, 2, 3), (5, 6)]
    with pytest.raises(UsageError, match=r"core 4 is not online.*0-3 .*5-6"):
        select_cores("4-6", clusters)


def test_numbers(tmp_path: Path) -> None:
    clusters = read_clusters(imitate(tmp_path, FLAGSHIP))
    assert select_cores("4-7", clusters) == (4, 5, 6, 7)
    assert select_cores("0,5", clusters) == (0, 5)
    assert len(clusters_of((4, 5), clusters)) == 1
    assert len(clusters_of((0, 5), clusters)) == 2
    assert format_cores((0, 5, 6, 7)) == "0,5-7"


@pytest.mark.parametrize("wanted", ["", "fast", "4-", "-1", "7-4", "1,,2", "0x1", "1;rm", "١"])
def test_other_words_are_refused(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UsageError, match=r"prime, big, little, or numbers such as 4-7 or 0,5"):
        select_cores(wanted, read_clusters(imitate(tmp_path, FLAGSHIP)))


def test_a_core_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        select_cores("1,0-2", read_clusters(imitate(tmp_path, FLAGSHIP)))


def test_equal_cores_have_no_little_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no little cores"):
        select_cores("little", read_clusters(imitate(tmp_path, "a76:4:2400000")))


def test_a_device_that_tells_nothing() -> None:
    with pytest.raises(MeasurementError, match="does not tell which cores"):
        read_clusters({})


def test_this_machine_tells() -> None:
    """The command that reads the files, in a real shell; x86 has no parts and may have no clocks."""
    done = subprocess.run(["sh", "-c", READ_COMMAND], capture_output=True, text=True, check=True, timeout=20)
    clusters = read_clusters(split_files(done.stdout.replace("\n", "\r\n")))  # as an old adb shell ends lines
    assert clusters[-1].cores
    assert clusters == read_clusters(split_files(done.stdout))
