"""How well networks measured elsewhere, without any table, predict other networks of their space.

5000 networks of the FBNet space at 32x32, measured on three devices by the authors of HELP (Lee et al., arXiv
2106.08630, released data): 1500 are held back, 50, 100 or 900 of the others calibrate. Each row compares the mean
absolute error in percent, on the networks held back, with least squares (one entry for each layer and option, of
least norm), and with the error that ``calibrate`` itself reports by cross-validation on its own networks.

    python benchmarks/foreign_networks.py [FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import platform
import time
from pathlib import Path

import numpy as np

import hwnas
from hwnas.latency.calibration import PredictionError
from hwnas.latency.environment import cpu_name

DEVICES = {"Titan RTX, batch 32": "titan_rtx_32_ms", "Xeon Gold 6240": "gold_6240_ms", "Samsung A50": "samsung_a50_ms"}
NUM_TEST = 1500


def load(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Option indices of shape ``(networks, 22)``, and milliseconds by device."""
    with gzip.open(folder / "fbnet_cifar100_networks.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    indices = np.array([[int(digit) for digit in row["arch"]] for row in rows], dtype=np.uint8)
    return indices, {name: np.array([float(row[column]) for row in rows]) for name, column in DEVICES.items()}


def least_squares(indices: np.ndarray, measured: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Predictions from one free entry for each layer and option."""
    design = [np.eye(9)[part].reshape(len(part), -1) for part in (indices, others)]
    return design[1] @ np.linalg.lstsq(design[0], measured, rcond=None)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[2] / "shared" / "data" / "latency-tables"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    indices, devices = load(parser.parse_args().folder)
    order = np.random.default_rng(0).permutation(len(indices))
    test, model = order[:NUM_TEST], hwnas.LatencyModel.without_table(hwnas.create_space("fbnet-cifar"))

    versions = f"Python {platform.python_version()}, numpy {np.__version__}, hwnas {hwnas.__version__}"
    print(f"{datetime.date.today()} {cpu_name()}, {versions}")  # noqa: T201
    print("device               networks  least squares  calibrate  reported  reported/true  seconds")  # noqa: T201
    for device, ms in devices.items():
        for num_networks in (900, 100, 50):
            train = order[NUM_TEST : NUM_TEST + num_networks]
            begin = time.perf_counter()
            calibrated = model.calibrate(indices[train], ms[train])
            seconds = time.perf_counter() - begin
            free = PredictionError.between(least_squares(indices[train], ms[train], indices[test]), ms[test]).mape
            mape = PredictionError.between(calibrated.exact_ms_many(indices[test]), ms[test]).mape
            assert calibrated.error is not None
            reported = calibrated.error.mape
            print(  # noqa: T201
                f"{device:20s} {num_networks:8d} {free:14.2f} {mape:10.2f} {reported:9.2f}"
                f" {reported / mape:14.2f} {seconds:8.1f}"
            )

    many = np.tile(indices, (200, 1))
    model = calibrated
    for kind in (np.uint8, np.int64):
        rows = many.astype(kind)
        begin = time.perf_counter()
        model.exact_ms_many(rows)
        rate = len(rows) / (time.perf_counter() - begin)
        print(f"exact_ms_many, {np.dtype(kind).name} indices: {rate / 1e6:.1f} million networks a second")  # noqa: T201


if __name__ == "__main__":
    main()
