"""The plan of the house: who may import whom, and which module owns which heavy package."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = [  # a module imports from its own line and the lines above
    "config system",
    "utils network",
    "pose text_fusion_modules",
    "clips temporal_alignment",
    "datasets models synthetic",
    "describing training",
    "translator fine_tuning",
    "pages",
    "describe inference pre_training_checklist tools",
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms.split()}
OWNERS = {
    "deepspeed": {"training.engine", "training.weight_files"},
    "transformers": {"models", "network.mt5", "text_fusion_modules", "tools.benchmark"},
    "sentencepiece": {"network.vocabulary", "synthetic.small_mt5"},
    "sacrebleu": {"training.metrics"},
    "tqdm": {"utils"},
    "pose_format": {"pose.files"},
    "av": {"pose.video"},
    "cv2": {"pose.video"},
    "mediapipe": {"pose.extraction"},
    "rtmlib": {"pose.extraction"},
    "onnxruntime": {"pose.extraction"},
    "PIL": {"pose.drawing", "pose.hand_crops", "pose.video", "tools.picture"},
    "safetensors": {"synthetic.small_mt5", "training.weight_files"},
}
FILES = [*ROOT.glob("*.py"), *(path for room in RANK for path in (ROOT / room).glob("[!_]*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at the top and in functions; also the names that it takes from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


IMPORTED = {module: imported(path) for module, path in MODULES.items()}
GRAPH = {module: names & MODULES.keys() for module, names in IMPORTED.items()}


def rank(module: str) -> int:
    return RANK[module.partition(".")[0]]


def test_imports_follow_the_order_of_the_rooms():
    assert len(list(graphlib.TopologicalSorter(GRAPH).static_order())) == len(MODULES)  # CycleError, with the cycle
    arrows = {(module, name) for module, names in GRAPH.items() for name in names}
    assert not {(module, name) for module, name in arrows if rank(name) > rank(module)}
    programs = {
        name for name, path in MODULES.items() if rank(name) == len(ROOMS) - 1 and "__main__" in path.read_text()
    }
    assert not {(module, name) for module, name in arrows if name in programs}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_packages_have_owners(module):
    packages = {name.partition(".")[0] for name in IMPORTED[module]}
    assert not {package for package in packages & OWNERS.keys() if module not in OWNERS[package]}


def test_requirements_are_those_of_the_project():
    """What requirements.txt pins is what pyproject.toml asks for, no lower than its bounds."""
    pins = dict(re.findall(r"^([a-z0-9_-]+)==([0-9.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    bounds = dict(re.findall(r'^    "([a-z0-9_-]+)>=([0-9.]+)[", ]', (ROOT / "pyproject.toml").read_text(), re.M))
    assert set(pins) == set(bounds)
    number = {name: [tuple(map(int, v[name].split("."))) for v in (bounds, pins)] for name in pins}
    assert all(low <= pin for low, pin in number.values()), number


@pytest.mark.parametrize(("hook", "refused"), [("build_wheel", True), ("prepare_metadata_for_build_editable", False)])
def test_no_package_without_code_is_built(hook, refused, tmp_path):
    """`pip install .` would succeed, and install nothing."""
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-c", f"import build_backend; build_backend.{hook}('.')"]
    variables = os.environ | {"PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert ("pip install -e ." in done.stderr) == bool(done.returncode) == refused
