"""The plan of the house: who may import whom, and which module owns which heavy package."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEVELS = {
    0: [
        "config",
        "safe_pickle",
        "disk",
        "run_lock",
        "heartbeat",
        "metrics",
        "pose_files",
        "temporal_alignment",
        "tokenizer",
        "winograd",
        "mt5",
        "vocabulary",
        "optimization",
        "sample_signer",
        "description_files",
        "pages",
        "video",
    ],
    1: ["stgcn", "labels", "pose", "text_fusion_modules", "kept_tokens", "distributed", "utils", "vlm_client"],
    2: [
        "batch",
        "packed",
        "search",
        "rgb_fusion",
        "text_cache",
        "zero_state",
        "small_mt5",
        "posecodes",
        "pictures",
        "tracking",
        "pose_extraction",
    ],
    3: [
        "datasets",
        "models",
        "sample_data",
        "weights",
        "checkpoint",
        "bad_clips",
        "pose_sentences",
        "describe_by_model",
        "run_folder",
    ],
    4: ["survival", "description_audit", "benchmark_reference", "ablate", "translator", "judged", "building"],
    5: ["fine_tuning", "describe", "inference", "export", "demo_page", "pack_dataset", "clip_view", "extract_poses"],
    6: ["readiness", "benchmark", "report"],
    7: ["pre_training_checklist"],
}
OWNERS = {
    "deepspeed": {"distributed", "zero_state"},
    "transformers": {"text_fusion_modules", "models", "mt5", "benchmark", "benchmark_reference"},
    "sentencepiece": {"tokenizer", "small_mt5"},
    "sacrebleu": {"metrics"},
    "tqdm": {"utils"},
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
LEVEL = {module: level for level, modules in LEVELS.items() for module in modules}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_every_module_has_a_level():
    assert set(LEVEL) == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_import_from_lower_levels_only(module):
    upward = {name for name in imported(MODULES[module]) & set(LEVEL) if LEVEL[name] >= LEVEL[module]}
    assert not upward


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
    bounds = dict(re.findall(r'^    "([a-z0-9_-]+)>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text(), re.M))
    assert set(pins) == set(bounds)
    number = {name: [tuple(map(int, v[name].split("."))) for v in (bounds, pins)] for name in pins}
    assert all(low <= pin for low, pin in number.values()), number
