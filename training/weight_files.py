"""Weight files and folders: safe reading, whatever program wrote them, and atomic saving.

A weight file (`checkpoint_{epoch}.pth`, `best_checkpoint.pth`) is `{"model": state_dict, ...}` with Uni-Sign's names.
The state dict includes the fusion modules; `best_fusion.pth` holds only these. A folder of `tools/export.py` has the
same weights in files that other programs can read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from config import MODEL_JSON, ModelConfig
from network.state_dicts import not_finite
from system.disk import write_whole
from system.safe_pickle import Dtype, scalar
from utils import NO_MODEL

ENCODER_PREFIX = "text_encoder.encoder."
# Where other programs keep the weights in a file, and what DataParallel, torch.compile and Lightning put before names.
KEYS = ("model", "state_dict", "model_state_dict", "module")
WRAPPERS = ("module.", "_orig_mod.", "model.")
LONGEST_NAME = 1000  # of a weight; a name of a hundred thousand wrappers would take minutes to unwrap
# What torch can compare and copy into a model; fp8 and quantised numbers are not.
DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
)  # fmt: skip
# Beside tensors: the command line and scores that people save with them.
PLAIN: list[Any] = [
    argparse.Namespace,
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),  # as Python 3.13 writes it
    (PureWindowsPath, "pathlib.WindowsPath"),
    (PureWindowsPath, "pathlib._local.WindowsPath"),
    (Dtype, "numpy.dtype"),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def save_weights(path: str | Path, state_dict: Mapping[str, torch.Tensor], config: ModelConfig, **facts: Any) -> None:
    """Write a weight file that also loads in Uni-Sign; the file appears only when it is complete."""
    content = {"model": dict(state_dict), "config": dataclasses.asdict(config), **facts}
    write_whole(path, partial(torch.save, content))


def repeated(name: str) -> str:
    """Return the name under which a shared weight occurs first in the state dict, or the name itself.

    Both hands share their modules; mT5's encoder and decoder share its embeddings.

    >>> repeated("gcn_modules.right.layer0_0.gcn.A"), repeated("mt5_model.decoder.embed_tokens.weight")
    ('gcn_modules.left.layer0_0.gcn.A', 'mt5_model.shared.weight')
    """
    name = re.sub(r"^(proj_linear|gcn_modules|fusion_gcn_modules)\.right\.", r"\1.left.", name)
    return re.sub(r"(?:en|de)coder\.embed_tokens\.weight$", "shared.weight", name)


def save_safetensors(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a .safetensors file; shared weights are stored once, with the other names in its metadata, as usual."""
    from safetensors.torch import save

    shared = {name: repeated(name) for name in weights if repeated(name) != name and repeated(name) in weights}
    own = {name: value.contiguous().clone() for name, value in weights.items() if name not in shared}
    content = save(own, metadata={"format": "pt", **shared})
    write_whole(path, lambda file: file.write(content))


def read_weights(path: str | Path, flag: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read weights without executing any code in their files.

    Args:
        path: a .pth or .safetensors file, or a folder of `tools/export.py`.
        flag: what named it, for error messages.

    Returns:
        The state dict, and other facts (config, epoch ...), with where mT5 and text encoder of an exported folder are.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no model.
        ValueError: there are no weights that can be read safely, or they are not finite.
    """
    path = Path(path)
    if (path / MODEL_JSON).is_file():
        weights, facts = _read_export(path, flag)
    elif path.is_dir():
        raise FileNotFoundError(f"{flag}: {path} {NO_MODEL}")
    else:
        weights, facts = _read_file(path, flag)
    while weights and all(name.startswith(WRAPPERS) for name in weights):
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    if damaged := not_finite(weights):
        raise ValueError(f"{flag}: {path}: {damaged}: the training diverged, or the file is damaged. Give another one.")
    return weights, facts


def _read_file(path: Path, flag: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{flag}: {path} does not exist.")
    try:
        content: Any = {"model": _read_safetensors(path)} if path.suffix == ".safetensors" else _read_torch(path)
    except pickle.UnpicklingError:  # torch's own message suggests executing the file
        raise ValueError(
            f"{flag}: {path} holds no weights that can be read safely: it is no file of torch.save, or asks for more "
            "than tensors and plain data. Get it again, or let the program that wrote it save its state_dict alone."
        ) from None
    except Exception as error:  # noqa: BLE001 -- a damaged file raises nearly anything; each becomes one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{flag}: {path} holds no weights that can be read safely: {reason}") from None
    key = next((key for key in KEYS if isinstance(content, Mapping) and key in content), None)
    weights = content if key is None else content[key]
    if not isinstance(weights, Mapping):
        raise ValueError(f"{flag}: {path} holds no state dict; wanted {{'model': state_dict}}.")
    if (bad := next((name for name, value in weights.items() if not _is_weight(name, value)), None)) is not None:
        kind = getattr(weights[bad], "dtype", type(weights[bad]).__name__)
        raise ValueError(
            f"{flag}: {path} holds no state dict: {bad!r:.60} is no name with a dense tensor of numbers, but {kind}. "
            "Save the weights as float32, float16 or bfloat16."
        )
    return dict(weights), {name: value for name, value in content.items() if key and name != key}


def _read_torch(path: Path) -> Any:
    """Let `torch.load` make tensors and plain data only."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is a packed archive, and torch.save packs nothing")
    with torch.serialization.safe_globals(PLAIN):
        # Mapped, the file's tensors take no memory beside the model's, nor those that are not needed.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _is_weight(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_NAME:
        return False
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_nested or value.is_meta:
        return False
    if value.dtype not in DTYPES:
        return False
    return value.nbytes <= value.untyped_storage().nbytes()  # more would be few numbers that claim to be many


def _read_export(folder: Path, flag: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        facts = json.loads((folder / MODEL_JSON).read_text(encoding="utf-8"))
        encoder = facts["text_encoder"]
        facts["config"]["text_encoder"] = str(folder / "text_encoder") if encoder else ""
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{flag}: {folder / MODEL_JSON} is damaged ({reason}). Export the model again.") from None
    parts = {"": folder, "mt5_model.": folder / "mt5"}
    if encoder == "trained":
        parts[ENCODER_PREFIX] = folder / "text_encoder"
    weights: dict[str, torch.Tensor] = {}
    for prefix, part in parts.items():
        found, _ = _read_file(part / "model.safetensors", flag)
        weights |= {prefix + name: value for name, value in found.items()}
    return weights, {**facts, "mt5_path": str(folder / "mt5")}


def _read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no dict
        shared = file.metadata() or {}
    return weights | {name: weights[other] for name, other in shared.items() if other in weights}
