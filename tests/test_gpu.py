"""A GPU, and lower precision, give what the CPU gives in fp32; `make gpu` runs this first."""

import pytest
import torch
from torch import nn

from clips.batch import collate_fn, to_device
from config import DATASETS
from datasets import S2T_Dataset
from system.distributed import autocast
from tests.helpers.models import new_model

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize(
    ("device", "dtype", "distance"),
    [
        ("cpu", "bf16", 0.015),
        pytest.param("cuda", "fp32", 0.002, marks=on_gpu),  # its convolutions round to TF32
        pytest.param("cuda", "bf16", 0.015, marks=on_gpu),
        pytest.param("cuda", "fp16", 0.005, marks=on_gpu),
    ],
)
def test_loss_gradients_and_sentences_are_those_of_the_cpu(corpus, device, dtype, distance):
    clips = S2T_Dataset(DATASETS["CSL_Daily"].under(corpus), "train", use_descriptions=True)
    src_input, tgt_input = collate_fn([clips[i] for i in range(6)])
    results, ids = [], None
    for where, precision in (("cpu", "fp32"), (device, dtype)):
        place = torch.device(where)
        model = new_model(corpus / "pretrained_weight" / "mt5-base", use_descriptions=True, text_dropout_p=0.0)
        model.to(place).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        on_device = to_device(src_input, place)
        with torch.no_grad(), autocast(precision, place):
            in_training = model(on_device, tgt_input).nll
        # With fixed batch statistics: through those of a batch, bf16 leaves little of a new model's first gradients.
        model.eval()
        with autocast(precision, place):
            output = model(on_device, tgt_input)
        (output.loss * 1024).backward()  # otherwise small gradients are zero in fp16
        gradients = torch.cat([x.grad.flatten() for x in model.parameters() if x.grad is not None])
        with torch.no_grad(), autocast(precision, place):
            found = model.generate(output, num_beams=4, max_new_tokens=8)
            assert len(found) == 6
            ids = found if ids is None else ids
            scores = model.log_probs(output, ids.to(place))  # of the same sentences
        results.append([x.cpu().double() for x in (in_training, output.nll, scores, gradients)])
    for expected, actual in zip(*results, strict=True):
        assert (actual - expected).norm() < distance * expected.norm()
