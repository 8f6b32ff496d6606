"""How given weights differ from those that a model needs: one line that names them all."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import torch

SHOWN = 6  # maximum number of names in a message


def differences(
    weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], may_lack: Container[str] = ()
) -> str:
    """Say how names and shapes of given weights differ from the model's own, of which some may lack; "" if not."""
    missing = [name for name in own if name not in weights and name not in may_lack]
    unknown = [name for name in weights if name not in own]
    both = [(name, value.shape, own[name].shape) for name, value in weights.items() if name in own]
    return misfits(missing, unknown, [misfit for misfit in both if misfit[1] != misfit[2]])


def misfits(
    missing: Sequence[str], unknown: Sequence[str], reshaped: Iterable[tuple[str, torch.Size, torch.Size]]
) -> str:
    """Say which weights are missing, unknown, or have another shape than the model's, (name, given, wanted)."""
    shapes = [f"{name} {tuple(given)} for {tuple(wanted)}" for name, given, wanted in reshaped]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    return "; ".join(f"{what}: {_listed(names)}" for what, names in kinds.items() if names)


def not_finite(weights: Mapping[str, torch.Tensor]) -> str:
    """Say which weights hold NaN or infinity; "" if none do."""
    floats = {name: value for name, value in weights.items() if value.is_floating_point() and value.numel()}
    # Unlike `isfinite`, `aminmax` copies nothing, and is a hundred times faster.
    names = [name for name, value in floats.items() if not torch.stack(value.aminmax()).isfinite().all()]
    return f"NaN or infinity in {_listed(names)}" if names else ""


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
