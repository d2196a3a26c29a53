"""Packaging of hwnas; tools are configured in pyproject.toml, exact versions are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

PLUGIN_FOLDERS = ("profilers", "deploy", "latency_tables")
PLUGIN_PACKAGES = find_packages(include=[pattern for name in PLUGIN_FOLDERS for pattern in (name, f"{name}.*")])
ROOT = Path(__file__).parent
VERSION = (ROOT / "hwnas" / "_version.py").read_text(encoding="utf-8").split('"')[-2]

setup(
    name="hwnas",
    version=VERSION,
    description="Hardware-aware neural architecture search with latency lookup tables",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hwnas", "hwnas.*"]) + [f"hwnas.{name}" for name in PLUGIN_PACKAGES],
    package_dir={"hwnas": "hwnas", **{f"hwnas.{name}": name for name in PLUGIN_FOLDERS}},
    package_data={
        "hwnas": ["py.typed"],
        "hwnas.latency_tables": ["*.csv", "*.json", "README.md"],
        "hwnas.profilers.remote": ["runner/*.c", "runner/*.h"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "onnx>=1.18",
        "onnxruntime>=1.23",
        "onnxscript>=0.5",
        "numpy>=2.0",
        "pandas>=2.2",
        "scipy>=1.13",
        "typer>=0.15",
        "rich>=13.9",
        "safetensors>=0.5",
        "matplotlib>=3.9",
        "tensorboard>=2.18",
    ],
    extras_require={
        "demo": ["scikit-learn>=1.5"],
        "tensorrt": ["tensorrt>=10.3"],
        "rtx": ["tensorrt-rtx-cu13>=1.4"],
        "remote": ["ziglang>=0.13"],
        "dev": [
            "pytest>=8,<9.2",  # which silently ignores xdist_group (pytest-xdist issue 1386)
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "mypy>=1.15",
            "ruff>=0.11",
            "pandas-stubs",
            "scipy-stubs",
        ],
    },
    entry_points={
        "console_scripts": ["hwnas = hwnas.cli:main"],
        "hwnas.profilers": [
            "onnxruntime = hwnas.profilers.onnxruntime:create_onnxruntime",
            "tensorrt = hwnas.profilers.tensorrt:TensorRTProfiler [tensorrt]",
            "tensorrt-rtx = hwnas.profilers.tensorrt:TensorRTRTXProfiler [rtx]",
            "torch = hwnas.profilers.torch:TorchProfiler",
        ],
        "hwnas.exporters": [
            "onnx = hwnas.deploy.onnx:OnnxExporter",
            "tensorrt = hwnas.deploy.tensorrt:TensorRTExporter",
        ],
        "hwnas.devices": [
            "reachable = hwnas.profilers.remote.targets:reachable",
            "doctor = hwnas.profilers.remote.doctor:doctor",
        ],
        "hwnas.proofs": ["verify = hwnas.deploy.verification:verify", "report = hwnas.deploy.report:report"],
    },
)
