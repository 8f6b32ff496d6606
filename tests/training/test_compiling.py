"""What is compiled gives the same numbers, whatever the sizes, and is compiled once."""

import copy
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from clips.batch import Sample, collate_fn
from pose.keypoints import PART_JOINTS
from tests.helpers.models import new_model
from training.compiling import compile_parts

SENTENCES = ("妈妈很累。", "the left hand is at the chin", "累", "我想读书。")


@pytest.fixture
def settings():
    """Torch's settings as they were."""
    with torch._dynamo.config.patch(specialize_int=False, recompile_limit=8):
        yield
    torch.compiler.reset()


def batch(*lengths):
    """A batch of random clips with so many frames."""
    parts = ({part: torch.rand(n, len(joints), 3) for part, joints in PART_JOINTS.items()} for n in lengths)
    return collate_fn([Sample(str(i), x, SENTENCES[i % 4], "", {}, None, None) for i, x in enumerate(parts)])


def loss_and_gradients(model, clips):
    model.zero_grad()
    loss = model(*clips).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_parts_give_the_same(small_mt5_folder, settings):
    model = new_model(small_mt5_folder, label_smoothing=0.1)
    compiled = copy.deepcopy(model)
    compile_parts(compiled, torch.device("cpu"))
    assert list(compiled.state_dict()) == list(model.state_dict())
    mt5 = compiled.mt5_model  # a part of each kind, since each takes its time
    tried = (compiled.fusion_gcn_modules["body"], mt5.encoder.block[0], mt5.decoder.block[0])
    for part in set(compiled.modules()) - set(tried):
        part._compiled_call_impl = None
    for module in (*model.modules(), *compiled.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # of attention
            module.dropout = 0.0
    made = []
    for lengths in ((7, 12), (20, 3, 9), (5, 31, 8), (40, 9, 2, 17)):
        clips = batch(*lengths)
        expected, gradients = loss_and_gradients(model.train(), clips)
        loss, found = loss_and_gradients(compiled.train(), clips)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, gradients, rtol=1e-3, atol=1e-4)
        made.append(counters["stats"]["unique_graphs"])
    assert made[0] < made[1] == made[2] == made[3]  # the second size tells that sizes vary
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval().encode_pose(clips[0]), model.eval().encode_pose(clips[0]))


def test_where_nothing_can_be_compiled(small_mt5_folder, settings, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"--compile: torch cannot compile here .*C\+\+ compiler"):
        compile_parts(new_model(small_mt5_folder), torch.device("cpu"))
