"""`--compile`: the graph convolutions and mT5's blocks in fewer kernels, by torch.compile.

A part is compiled when it is first used, and again for what its kernels depend on: training or not, autocast, and for
convolutions over time the bucket that the number of frames is in. Other sizes may vary.
"""

from __future__ import annotations

from typing import Any

import torch

from models import Uni_Sign
from network.mt5 import Block
from network.stgcn import STGCNChain

BUCKET = 512  # frames; see `ClipLayout`
MOST = 512  # compilations of one function: all chains are one, and each has its joints, lengths and modes


def compile_parts(model: Uni_Sign, device: torch.device) -> None:
    """Have a model's graph convolutions and mT5 blocks compiled, in place. Weights keep their names.

    Raises:
        ValueError: torch cannot compile for the device.
    """
    settings: Any = torch._dynamo.config
    settings.specialize_int = True  # a length that varies would fail in the convolution over time
    settings.recompile_limit, settings.accumulated_recompile_limit = MOST, 8 * MOST  # then it would go on without
    try:
        torch.compile(torch.exp)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--compile: torch cannot compile here ({reason}). Install a C++ compiler, for a GPU also triton, or drop "
            "--compile."
        ) from None
    model.bucket = BUCKET
    for part in model.modules():
        if isinstance(part, STGCNChain | Block):
            part.compile()
