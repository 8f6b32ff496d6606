"""The forms that ours are measured against do the same work: they give the same results."""

import numpy as np
import pytest
import torch

import benchmark
import benchmark_reference as reference
from batch import collate_fn
from pose import PART_JOINTS, normalize_keypoints

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair():
    """A small model with descriptions and its straightforward form, in evaluation and float64; and a batch."""
    model = benchmark.make_model(benchmark.SIZES["tiny"], True, CPU).double().eval()
    src_input, tgt_input = collate_fn(benchmark.make_samples([8, 8, 8], 2))
    src_input |= {part: src_input[part].double() for part in PART_JOINTS}
    return model, reference.ReferenceModel(model).eval(), (src_input, tgt_input)


def close(ours, other):
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalisation(dtype):
    rng = np.random.default_rng(0)
    keypoints, scores = rng.uniform(0, 1, (9, 133, 2)).astype(dtype), rng.uniform(0, 1, (9, 133)).astype(dtype)
    for points, sure in ((keypoints, scores), (keypoints, scores * 0.2), (keypoints * 0, scores)):
        ours, other = normalize_keypoints(points, sure), reference.normalize_keypoints(points, sure)
        for part in PART_JOINTS:
            np.testing.assert_allclose(ours[part], other[part], rtol=0, atol=1e-6)


def test_collation():
    samples = benchmark.make_samples([5, 8, 2], 2)
    ours, _ = collate_fn(samples)
    other = reference.collate([{part: x.numpy() for part, x in sample.pose_sample.items()} for sample in samples])
    for part in PART_JOINTS:
        assert torch.equal(ours[part], other[part])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_pose_encoder_and_its_gradients(pair, training):
    model, other, (src_input, _) = pair
    names = [name for name, _ in model.named_parameters() if "gcn" in name or "proj" in name]
    weights = dict(model.named_parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for form in (model, other):
        model.train(training)
        out = form.encode_pose(src_input)
        gradients = torch.autograd.grad(out.pow(2).mean(), [weights[name] for name in names], allow_unused=True)
        statistics = model.state_dict()["gcn_modules.left.layer0_0.gcn.bn.running_var"].clone()
        results.append((out, [gradient for gradient in gradients if gradient is not None], statistics))
        model.load_state_dict(state)
    model.eval()
    close(results[0][0], results[1][0])
    close(results[0][2], results[1][2])
    for ours, plain in zip(results[0][1], results[1][1], strict=True):
        assert (ours - plain).norm() <= 1e-6 * plain.norm() + 1e-9


def test_text_branch(pair):
    model, other, (src_input, _) = pair
    pose = torch.randn(3, 8, 32, dtype=torch.float64)
    close(model.fuse_text(pose, src_input)[0], other.fuse_text(pose, src_input))


def test_loss_and_sentences(pair):
    model, other, (src_input, tgt_input) = pair
    with torch.no_grad():
        output = model(src_input, tgt_input)
        sentences = model.sentences(model.generate(output, 2, 5))
    written, losses = other.evaluate([(src_input, tgt_input)], 2, 5)
    assert output.loss.item() == pytest.approx(losses[0], rel=1e-6)
    assert sentences == written
    assert len(set(sentences)) > 1


def test_weights_are_shared(pair):
    model, other, _ = pair
    own, plain = dict(model.mt5_model.named_parameters()), dict(other.mt5.named_parameters())
    assert own.keys() == plain.keys()
    assert all(own[name] is plain[name] for name in own)
    assert other.mt5.encoder.config._attn_implementation == "eager"
