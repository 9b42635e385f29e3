"""A whole ViTAdapter through torch.compile and torch.export."""

import shutil

import pytest
import torch
from torch import nn

from vitadapter.modeling.backbone import ViT, ViTAdapter
from vitadapter.ops import MSDeformAttn

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs g++")


@pytest.fixture
def adapter() -> ViTAdapter:
    torch.manual_seed(0)
    net = ViT(embed_dim=32, depth=2, num_heads=2, window_size=3, window_block_indexes=[0])
    model = ViTAdapter(
        net,
        num_interactions=1,
        num_extra_extractors=1,
        conv_dim=8,
        deform_num_heads=2,
        norm="BN",
        injector_gamma_init=0.5,
    )
    for module in model.modules():  # the initial zeros would hide the attention
        if isinstance(module, MSDeformAttn):
            nn.init.normal_(module.sampling_offsets.weight, std=0.02)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    return model.eval()


def outputs_and_gradients(run, model, images):
    model.zero_grad()
    outputs = run(images)
    torch.manual_seed(1)
    sum((out * torch.randn(out.shape)).sum() for out in outputs.values()).backward()
    return dict(outputs), {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_equal(found, expected, tolerance):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        scale = max(1.0, tensor.detach().abs().max().item())
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_compiled_equals_eager_in_outputs_and_gradients(adapter):
    """Through AOTAutograd; Inductor's code for both passes takes minutes to build."""
    torch._dynamo.reset()
    compiled = torch.compile(adapter, fullgraph=True, backend="aot_eager", dynamic=False)
    images = torch.randn(2, 3, 64, 96)
    found = outputs_and_gradients(compiled, adapter, images)
    expected = outputs_and_gradients(adapter, adapter, images)
    assert_equal(found[0], expected[0], 1e-5)
    assert_equal(found[1], expected[1], 1e-4)


# With and without padding to multiples of 32, and to whole windows of 3 tokens; also squares. A
# side of 32 pixels or less, whose map of stride 32 has one row, needs a program of its own.
SIZES = [(32 * h - 5 * (h % 2), 32 * w) for h in (2, 3, 4, 5, 6) for w in (2, 3, 4, 5)]


def test_one_program_for_all_sizes_and_batches(adapter):
    """As Dynamo traces it, without what a compiler does with it."""
    torch._dynamo.reset()
    compiled = torch.compile(adapter, fullgraph=True, backend="eager", dynamic=True)
    compiled(torch.randn(2, 3, 64, 96))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, (height, width) in zip((2, 4) * 10, SIZES, strict=True):
            images = torch.randn(batch, 3, height, width)
            found = outputs_and_gradients(compiled, adapter, images)
            expected = outputs_and_gradients(adapter, adapter, images)
            assert_equal(found[0], expected[0], 1e-5)
            assert_equal(found[1], expected[1], 1e-4)


@needs_compiler
def test_inductor_equals_eager(adapter):
    torch._dynamo.reset()
    compiled = torch.compile(adapter, fullgraph=True, dynamic=False)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert_equal(compiled(images), adapter(images), 1e-5)


def test_exported_equals_eager(adapter):
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(
        adapter, (torch.randn(2, 3, 64, 96),), dynamic_shapes=({0: batch},), strict=False
    )
    names = {str(node.target) for node in program.graph.nodes}
    assert "vitadapter.ms_deform_attn_fused.default" in names
    for size in (2, 5):
        images = torch.randn(size, 3, 64, 96)
        with torch.no_grad():
            assert_equal(program.module()(images), adapter(images), 1e-5)
