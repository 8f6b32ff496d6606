"""The plan of the house: who may import whom, and which module owns which heavy package."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OWNERS = {
    "deepspeed": {"distributed", "deepspeed_engine"},
    "transformers": {"text_fusion_modules", "models", "mt5", "benchmark"},
    "sentencepiece": {"tokenizer", "small_mt5"},
    "sacrebleu": {"metrics"},
    "tqdm": {"cli"},
    "pose_format": {"pose_files"},
    "av": {"video"},
    "cv2": {"video"},
    "mediapipe": {"pose_extraction"},
    "rtmlib": {"pose_extraction"},
    "onnxruntime": {"pose_extraction"},
    "PIL": {"rgb_fusion", "pictures"},
    "safetensors": {"weights", "small_mt5"},
}
MODULES = {path.stem: path for path in ROOT.glob("*.py")}
PROGRAMS = {name for name, path in MODULES.items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_imports_have_no_cycle():
    graph = {module: imported(path) & MODULES.keys() for module, path in MODULES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the cycle
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"pre_training_checklist"}))  # it tries what the others do
def test_programs_are_not_imported(module):
    assert not imported(MODULES[module]) & PROGRAMS - {"small_mt5"}  # the sample corpus has one, too


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_packages_have_owners(module):
    taken = {package for package in imported(MODULES[module]) & set(OWNERS) if module not in OWNERS[package]}
    assert not taken


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_its_tests(module):
    assert (ROOT / "tests" / f"test_{module}.py").is_file()


def test_requirements_are_those_of_the_project():
    """What requirements.txt pins is what pyproject.toml asks for, no lower than its bounds."""
    pins = dict(re.findall(r"^([a-z0-9_-]+)==([0-9.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    bounds = dict(re.findall(r'^    "([a-z0-9_-]+)>=([0-9.]+)[",]', (ROOT / "pyproject.toml").read_text(), re.M))
    assert set(pins) == set(bounds)
    number = {name: [tuple(map(int, v[name].split("."))) for v in (bounds, pins)] for name in pins}
    assert all(low <= pin for low, pin in number.values()), number
