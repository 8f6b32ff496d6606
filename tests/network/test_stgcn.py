"""Graph convolutions against plain torch in the official order, and what packing must not mix."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from network.stgcn import (
    EDGES,
    PART_GRAPH,
    REACH,
    ClipLayout,
    STGCNBlock,
    STGCNChain,
    TemporalConvolution,
    adjacency,
    select,
    spread,
)

LENGTHS = (7, 1, 4, 9)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mask_of(lengths, longest=None):
    return (torch.arange(longest or max(lengths)) < torch.tensor(lengths)[:, None]).long()


def layout_of(lengths, longest=None):
    return ClipLayout(mask_of(lengths, longest))


def joints_first(module, x, *others):
    """Call a part of a chain, which works on (V N, C), with (N, V, C)."""
    return module(x.transpose(0, 1).flatten(0, 1), *others).unflatten(0, (x.shape[1], -1)).transpose(0, 1)


def shaken(module):
    """Give every parameter and statistic a value that shows when it is left out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module


# -- skeletons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("graph", "n_joints", "n_edges"), [("body", 9, 8), ("hand", 21, 20), ("face", 18, 33)])
def test_adjacency(graph, n_joints, n_edges):
    itself, neighbours = adjacency(graph)
    assert itself.shape == neighbours.shape == (n_joints, n_joints)
    torch.testing.assert_close((itself + neighbours).sum(0), torch.ones(n_joints))
    assert torch.equal(itself, torch.diag(itself.diagonal()))
    assert not neighbours.diagonal().any()
    assert torch.equal(neighbours > 0, neighbours.T > 0)
    assert int((neighbours > 0).sum()) == 2 * n_edges == 2 * len(set(EDGES[graph]))


def test_adjacency_by_hand():
    itself, neighbours = adjacency("body")
    # A wrist (8) has its elbow (6) alone; the nose (0) has ears and shoulders; a shoulder (3) has nose and elbow.
    assert neighbours[:, 8].tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0]
    torch.testing.assert_close(neighbours[:, 0], torch.tensor([0, 1, 1, 1, 1, 0, 0, 0, 0]) / 5)
    torch.testing.assert_close(neighbours[:, 3], torch.tensor([1, 0, 0, 0, 0, 1, 0, 0, 0]) / 3)
    torch.testing.assert_close(itself.diagonal()[[0, 3, 8]], torch.tensor([1 / 5, 1 / 3, 1 / 2]))


@pytest.mark.parity
@pytest.mark.parametrize("part", PART_GRAPH)
def test_skeletons_are_the_official_ones(shared_reference, part):
    weights = load_file(shared_reference / "tiny_pose.safetensors")
    recorded = torch.stack(
        [value.float() for name, value in weights.items() if f".{part}." in name and name.endswith("A")]
    )
    assert len(recorded) == 6
    # They were stored with noise of deviation 0.05: the mean of six is within 0.02 or so, an edge weighs far more.
    torch.testing.assert_close(recorded.mean(0), adjacency(PART_GRAPH[part]), rtol=0, atol=0.1)


# -- packing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [LENGTHS, (3,), (5, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("padding", [0, 3])
def test_pack_and_unpack(lengths, padding):
    longest = max(lengths) + padding
    layout = layout_of(lengths, longest)
    x = torch.randn(len(lengths), longest, 2, 3)
    packed = layout.pack(x)
    assert torch.equal(packed, torch.cat([clip[:n] for clip, n in zip(x, lengths, strict=True)]))
    assert torch.equal(layout.unpack(packed), x * mask_of(lengths, longest)[..., None, None])


def test_frames_are_spread_and_selected():
    """Each is the other's gradient; frames that are not selected get none."""
    x, places = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2, 5])
    line = spread(x, places, 6)
    assert torch.equal(line[:, places], x)
    assert not line[:, [1, 3, 4]].any()
    assert torch.equal(select(line, places), x)
    assert torch.autograd.gradcheck(lambda x: spread(x, places, 6), x)
    assert torch.autograd.gradcheck(lambda x: select(x, places), line.detach().requires_grad_())


def test_a_line_that_is_lengthened_has_few_lengths():
    lengths = {ClipLayout(mask_of([n]), bucket=8).line_length for n in range(1, 65)}
    assert lengths == {8, 16, 24, 32, 48, 64}
    assert all(ClipLayout(mask_of([n]), bucket=8).line_length >= n for n in range(1, 65))
    assert ClipLayout(mask_of([3, 4])).line_length == 3 + 4 + REACH


# -- against plain torch -------------------------------------------------------------------------------------------


def test_temporal_convolution_is_one_per_clip():
    layer = shaken(TemporalConvolution(4))
    plain = nn.Conv2d(4, 4, (5, 1), padding=(2, 0))
    plain.load_state_dict(layer.state_dict())
    clips = [torch.randn(n, 6, 4) for n in LENGTHS]
    out = joints_first(layer, torch.cat(clips), layout_of(LENGTHS), 6)
    expected = [plain(clip.permute(2, 0, 1)[None])[0].permute(1, 2, 0) for clip in clips]
    torch.testing.assert_close(out, torch.cat(expected), rtol=1e-5, atol=1e-5)


def usual_block(block, x):
    """Apply a block of graph convolutions as it is usually written, (B, C, T, V) -> (B, C', T, V)."""

    def convolve(x, conv, padding=0):
        return F.conv2d(x, conv.weight, conv.bias, padding=(padding, 0))

    def normalise(x, norm):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)

    parts, shortcut = block.gcn, x
    if block.residual:
        shortcut = normalise(convolve(x, block.residual[0]), block.residual[1])
    x = convolve(x, parts.conv).unflatten(1, (len(parts.A), -1))  # (B, K, C', T, V)
    x = normalise(torch.einsum("bkctv,kvw->bctw", x, parts.A), parts.bn).relu()
    if block.tcn:
        x = normalise(convolve(x, block.tcn[0], REACH), block.tcn[1])
    return (x + shortcut).relu()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("n_in", "n_out", "temporal"), [(4, 4, True), (4, 8, False), (6, 6, False), (4, 8, True)])
def test_block_is_the_usual_one(n_in, n_out, temporal, training):
    block = shaken(STGCNBlock(n_in, n_out, "body", temporal))
    plain = copy.deepcopy(block.train(training))
    x = torch.randn(3, 8, 9, n_in)  # (B, T, V, C), no padding
    layout = layout_of((8, 8, 8))
    out = layout.unpack(joints_first(block, layout.pack(x), layout))
    usual = usual_block(plain, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, usual, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.gcn.bn.running_var, plain.gcn.bn.running_var)


# -- padding and neighbours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [STGCNChain.spatial, STGCNChain.temporal])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_padding_counts_for_nothing(kind, training):
    width = 4 if kind == STGCNChain.spatial else 16
    chains = [kind("body", 16) for _ in range(2)]
    chains[1].load_state_dict(shaken(chains[0]).state_dict())
    clips = [torch.randn(n, 9, width) for n in LENGTHS]
    results = []
    for chain, padding in zip(chains, (0, 6), strict=True):
        batch = torch.full((len(clips), max(LENGTHS) + padding, 9, width), float("nan"))
        for row, clip in zip(batch, clips, strict=True):
            row[: len(clip)] = clip
        layout = layout_of(LENGTHS, batch.shape[1])
        results.append(chain.train(training)(layout.pack(batch).transpose(0, 1), layout))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    for (name, one), other in zip(chains[0].state_dict().items(), chains[1].state_dict().values(), strict=True):
        assert torch.equal(one, other), name
        assert one.isfinite().all()
