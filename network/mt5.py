"""Load mT5 from a transformers folder, and run parts of it faster with the same results.

Shapes: B sequences, L tokens (padded), H attention heads, D mT5's d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CONFIG_MAPPING, GenerationConfig, MT5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mt5.modeling_mt5 import MT5Stack
from transformers.utils import logging as transformers_logging

from config import GET_MT5
from network.state_dicts import misfits, not_finite
from network.vocabulary import folder_config
from system.disk import file_sizes, most_bytes
from system.faults import in_one_line

# Its warnings about mT5 (tied weights, unused decoder weights) are known and handled here.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

MAX_LAYERS = 1000


class MT5(MT5ForConditionalGeneration):
    """mT5 with an output layer of its own.

    In mT5 it differs from the input embeddings, but transformers 5 ties them: it builds mT5 without the output layer's
    weight, and does not miss it in a checkpoint.
    """

    _tied_weights_keys = {f"{half}.embed_tokens.weight": "shared.weight" for half in ("encoder", "decoder")}


def load_mt5(
    folder: str | Path, *, with_weights: bool = True, kept: torch.Tensor | None = None
) -> MT5ForConditionalGeneration:
    """Load mT5 in fp32 from a local folder, with the tokens `kept`, (V,), None for all; see `read_pretrained`.

    Raises:
        FileNotFoundError: the folder or the weights are missing.
        ValueError: the folder holds another model, or its files are unreadable or lack weights.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}/config.json does not exist. {GET_MT5}")
    if (kind := folder_config(Path(folder)).get("model_type")) != "mt5":
        raise ValueError(f"{folder}/config.json: model_type is {kind!r}, not 'mt5'. Name mT5's folder with --mt5_path.")
    mt5 = read_pretrained(MT5, Path(folder), "--mt5_path", with_weights)
    if kept is not None:
        keep_rows(mt5, kept)
    return mt5


def read_pretrained(kind: Any, folder: Path, flag: str, with_weights: bool) -> Any:
    """Load a model in fp32 from a local folder, with one-line errors; weights are never left randomly initialised.

    Args:
        kind: the transformers class to load.
        folder, flag: where config and weights lie, and the flag that names it, for error messages.
        with_weights: False to skip loading them, for a model that gets all weights from a checkpoint.

    Raises:
        FileNotFoundError: a file is missing or cannot be opened.
        ValueError: the files are damaged, do not match, or lack weights.
    """
    cure = f"Get its files again, or name another folder with {flag}."
    try:
        if not with_weights:
            model = _build(kind, folder)[1].float()
            model.tie_weights()  # left out with the initialisation
            return model
        with torch.device("meta"):
            config, asked = _build(kind, folder)
        weights = sum(file_sizes(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")))
        if weights and (n_bytes := sum(value.nbytes for value in asked.parameters())) > most_bytes(weights):
            raise ValueError(f"{n_bytes >> 20} MB of weights are asked for, there are {weights >> 20}")
        model, info = kind.from_pretrained(
            folder,
            config=config,
            generation_config=GenerationConfig.from_model_config(config),  # otherwise read from the folder
            trust_remote_code=False,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, with the rest
            output_loading_info=True,
        )
    except OSError as error:
        raise FileNotFoundError(f"{folder}: {str(error).splitlines()[0]} {cure}") from None
    except Exception as error:  # damaged files may raise anything; report one line
        reason = in_one_line(error, 200)
        raise ValueError(f"{folder}: config.json or the weights are damaged or no pair ({reason}). {cure}") from error
    # The pooler is not used for mean pooling, and many published encoders have none. Weights of modules that the model
    # does not have, such as an encoder's decoder or heads, are not needed.
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    names = [name.removeprefix(f"{model.base_model_prefix}.") for name in info["unexpected_keys"]]
    unknown = [name for name in names if hasattr(model, name.partition(".")[0])]
    if fault := misfits(missing, unknown, info["mismatched_keys"]):
        raise ValueError(f"{folder}: config.json and the weights are no pair; {fault}. {cure}")
    if damaged := not_finite(dict(model.named_parameters())):
        raise ValueError(f"{folder}: {damaged}. {cure}")
    return model


def _build(kind: Any, folder: Path) -> tuple[Any, Any]:
    """Return a folder's config, and a model of it without its weights; on the meta device it takes no memory."""
    content = folder_config(folder)
    name = str(content.get("model_type"))
    if name not in CONFIG_MAPPING:
        raise ValueError(f"model_type is {name!r:.60}, none of transformers, and code in a folder is not run")
    config = CONFIG_MAPPING[name].from_dict(content)
    layers = [getattr(config, key, 0) for key in ("num_hidden_layers", "num_decoder_layers")]
    if any(isinstance(number, int) and number > MAX_LAYERS for number in layers):
        raise ValueError(f"it has {layers} layers")
    with no_init_weights():
        return config, getattr(kind, "from_config", kind)(config)


def keep_rows(mt5: Any, kept: torch.Tensor) -> None:
    """Trim the input embeddings, and the output matrix if there is one, to the rows of some tokens, (V,) ids, in place.

    `mt5` is the whole model with untied embeddings, or its encoder. ValueError if it has no token of such an id.
    """
    embeddings = mt5.get_input_embeddings().weight.detach()
    if int(kept.max()) >= len(embeddings):
        raise ValueError(
            f"mT5 has {len(embeddings)} tokens; the weights keep token {int(kept.max())} of a larger one. Name the mT5 "
            "of training with --mt5_path."
        )
    mt5.set_input_embeddings(nn.Embedding.from_pretrained(embeddings[kept], freeze=False))
    if (head := getattr(mt5, "lm_head", None)) is not None:
        head.weight, head.out_features = nn.Parameter(head.weight.detach()[kept]), len(kept)
    for module in mt5.modules():
        if hasattr(module, "config"):
            module.config.vocab_size = len(kept)


# -- running it in few kernels -----------------------------------------------------------------------------------------


def use_fused_layers(mt5: nn.Module) -> None:
    """Replace transformers' blocks and norms by faster ones with the same formulas, weights and names, in place."""
    stacks: list[Any] = [module for module in mt5.modules() if isinstance(module, MT5Stack)]
    for stack in stacks:
        stack.block = nn.ModuleList(Block(block.layer) for block in stack.block)
        stack.final_layer_norm = _fused_norm(stack.final_layer_norm)


def _fused_norm(norm: Any) -> nn.RMSNorm:
    if isinstance(norm, nn.RMSNorm):
        return norm
    fused = nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon, device="meta")
    fused.weight = norm.weight
    return fused


class Block(GradientCheckpointingLayer):
    """A block of mT5's encoder or decoder, made of the layers of a block of transformers, which hold the weights."""

    layer: Any

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        for part in layer:
            part.layer_norm = _fused_norm(part.layer_norm)
        if isinstance(layer[-1].DenseReluDense.act, NewGELUActivation):  # eight elementwise operations
            layer[-1].DenseReluDense.act = nn.GELU(approximate="tanh")

    def forward(self, x: torch.Tensor, bias: torch.Tensor, *cross: torch.Tensor) -> torch.Tensor:
        """Apply the block.

        Args:
            x: (B, L, D).
            bias: (B or 1, H, L, L), of each token's attention to the others.
            cross: for the decoder, keys and values of the encoder's states, (B, H, L', d_kv), and the bias of the
                attention to them, (B, 1, 1, L').

        Returns:
            (B, L, D).
        """
        own, *others, last = self.layer
        attention, mlp = own.SelfAttention, last.DenseReluDense
        groups = [[attention.q, attention.k, attention.v], [attention.o], [mlp.wi_0, mlp.wi_1], [mlp.wo]]
        for other in others:
            groups += [[other.EncDecAttention.q], [other.EncDecAttention.o]]
        qkv, out, expand, reduce, *of_cross = joined(groups)
        y = F.linear(own.layer_norm(x), qkv)  # (B, L, 3 H d_kv)
        q, k, v = split_heads(y, 3, attention.n_heads)  # (B, H, L, d_kv) each
        y = self._attend(q, k, v, bias)  # (B, L, D)
        x = x + own.dropout(F.linear(y, out))
        for other in others:  # one in the decoder, none in the encoder
            query, out = of_cross
            (q,) = split_heads(F.linear(other.layer_norm(x), query), 1, attention.n_heads)  # (B, H, L, d_kv)
            y = self._attend(q, *cross)  # (B, L, D)
            x = x + other.dropout(F.linear(y, out))
        gate, y = F.linear(last.layer_norm(x), expand).chunk(2, dim=-1)  # (B, L, d_ff) each
        y = mlp.dropout(mlp.act(gate) * y)
        return x + last.dropout(F.linear(y, reduce))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        attention = self.layer[0].SelfAttention
        dropout = attention.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=attention.scaling)  # (B, H, L, d_kv)
        return y.transpose(1, 2).flatten(2)


def keys_and_values(stack: Any, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Project the encoder's states for all layers of the decoder in one product.

    Returns:
        (B, L, D) -> for each layer its keys, then its values, (B, H, L, d_kv) each.
    """
    layers = [block.layer[1].EncDecAttention for block in stack.block]
    (weight,) = joined([[projection for layer in layers for projection in (layer.k, layer.v)]])
    return split_heads(F.linear(states, weight), 2 * len(layers), layers[0].n_heads)


def joined(groups: Sequence[Sequence[nn.Linear]]) -> list[torch.Tensor]:
    """Return one matrix per group of layers, their weights one below the other, in the precision of matrix products.

    All are converted together: in one kernel, and their gradients in another.
    """
    weights = [[layer.weight for layer in group] for group in groups]
    if (dtype := _dtype(weights[0][0])) == weights[0][0].dtype:
        return [torch.cat(group) if len(group) > 1 else group[0] for group in weights]
    flat = torch.cat([weight.flatten() for group in weights for weight in group]).to(dtype)
    parts = flat.split([sum(weight.numel() for weight in group) for group in weights])
    return [part.view(-1, group[0].shape[1]) for part, group in zip(parts, weights, strict=True)]


def _dtype(x: torch.Tensor) -> torch.dtype:
    """Return the precision of products of x: autocast's, where it is on."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def split_heads(x: torch.Tensor, n: int, n_heads: int) -> tuple[torch.Tensor, ...]:
    """Split the features of n projections into those of attention heads, (B, L, n H d_kv) -> n x (B, H, L, d_kv)."""
    return tuple(part.transpose(1, 2) for part in x.unflatten(-1, (n, n_heads, -1)).unbind(2))


def run_encoder(stack: Any, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run mT5's encoder on embedded tokens, (B, L, D) -> (B, L, D); the mask, (B, L), is 0 on padding.

    Position bias and mask are combined once for all layers. In transformers each layer makes and keeps its own copy,
    and inspects the mask's values, which forces a GPU synchronisation.
    """
    bias = _without(_position_bias(stack, embeds), mask[:, None, None] == 0)  # (B, H, L, L)
    x = stack.dropout(embeds)
    for block in stack.block:
        x = block(x, bias)
    return stack.dropout(stack.final_layer_norm(x))


def run_decoder(stack: Any, embeds: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run mT5's decoder on embedded tokens, (B, L, D) -> (B, L, D), each of which sees those before it.

    It attends to the encoder's states, (B, L', D), but for padding, where the mask, (B, L'), is 0.
    """
    bias = _position_bias(stack, embeds)  # (1, H, L, L)
    bias = _without(bias, torch.ones_like(bias[0, 0], dtype=torch.bool).triu(1))
    of_states = _without(bias.new_zeros(1), mask[:, None, None] == 0)  # (B, 1, 1, L')
    cross = keys_and_values(stack, states)  # (B, H, L', d_kv) each
    x = stack.dropout(embeds)
    for block, keys, values in zip(stack.block, cross[::2], cross[1::2], strict=True):
        x = block(x, bias, keys, values, of_states)
    return stack.dropout(stack.final_layer_norm(x))


def _position_bias(stack: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the bias for the distance between tokens, (1, H, L, L), in the precision of matrix products."""
    length = x.shape[1]
    return stack.block[0].layer[0].SelfAttention.compute_bias(length, length, device=x.device).to(_dtype(x))


def _without(bias: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return bias.masked_fill(hidden, torch.finfo(bias.dtype).min)
