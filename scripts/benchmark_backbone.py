#!/usr/bin/env python
"""Measures ViTAdapter against the same model composed of the parts that users have elsewhere.

The reference is Detectron2's own ViT as net and the deformable attention in plain PyTorch, nothing
fused; both have the same weights. Forward, training step (forward and backward) and bytes saved for
the backward pass, in interleaved rounds of one run.

Example: %(prog)s --models tiny small --sizes 800x1216 512x512 --rounds 5 --json backbone.json
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.modeling import ViT as Detectron2ViT
from detectron2.modeling.backbone.utils import get_abs_pos
from torch import Tensor, nn

from vitadapter.layers import MSDeformAttn, ms_deform_attn_reference
from vitadapter.layers.convolution import PointwiseConv2d, UpsampleConv2d
from vitadapter.layers.linear import Linear
from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import ViTAdapter, interaction, spatial_prior

# PyTorch's own layers, which ours compute in another way.
PLAIN = {Linear: nn.Linear, PointwiseConv2d: nn.Conv2d, UpsampleConv2d: nn.ConvTranspose2d}


class ReferenceAdapter(ViTAdapter):
    """ViTAdapter with nothing recomputed or fused around the attention."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        plain_run = mock.patch.object(
            spatial_prior, "run_and_recompute", lambda modules, x: nn.Sequential(*modules)(x)
        )
        plain_gelu = mock.patch.object(
            interaction, "gelu_linear", lambda x, layer: layer(F.gelu(x))
        )
        plain_norm = mock.patch.object(
            interaction, "norm_linear", lambda x, norm, layer: layer(norm(x))
        )
        with plain_run, plain_gelu, plain_norm:
            return super().forward(images)


class ReferenceNet(Detectron2ViT):
    """Detectron2's ViT, unchanged, behind the net contract."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.embed_dim = settings["embed_dim"]
        self.depth = settings["depth"]
        self.patch_size = settings["patch_size"]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embed(images)
        x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        return x, x.new_zeros(x.shape[0], 0, self.embed_dim)

    def forward_blocks(
        self, x: Tensor, prefix: Tensor, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        for block in self.blocks[start:stop]:
            x = block(x)
        return x, prefix


class ReferenceAttention(MSDeformAttn):
    """The deformable attention with locations, softmax and sampling in plain PyTorch."""

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: list[tuple[int, int]],
    ) -> Tensor:
        per_head = (*query.shape[:2], self.num_heads)
        sizes = query.new_tensor([[w, h] for h, w in spatial_shapes])[:, None]
        offsets = self.sampling_offsets(query)
        offsets = offsets.view(*per_head, self.num_levels, self.num_points, 2)
        locations = reference_points[:, :, None, :, None] + offsets / sizes
        weights = self.attention_weights(query).view(*per_head, -1).softmax(-1)
        weights = weights.view(*per_head, self.num_levels, self.num_points)
        value = self.value_proj(value).unflatten(-1, (self.num_heads, -1))
        return self.output_proj(ms_deform_attn_reference(value, spatial_shapes, locations, weights))


def build(size: str) -> dict[str, ViTAdapter]:
    """Ours and the reference, with the same random weights."""
    cfg = get_config("common/models/vit_adapter.py")[f"vit_adapter_{size}"]
    cfg.net.update(pad_after_qkv=False, layer_scale_init=None, drop_path_rate=0.0)
    torch.manual_seed(0)
    ours = instantiate(cfg)
    for parameter in ours.parameters():
        if parameter.abs().max() == 0:  # zeros would leave the attention without a task
            nn.init.normal_(parameter, std=0.02)
    cfg._target_ = ReferenceAdapter
    cfg.net._target_ = ReferenceNet
    del cfg.net.pad_after_qkv, cfg.net.layer_scale_init
    cfg.attention = ReferenceAttention
    reference = instantiate(cfg)
    reference.load_state_dict(ours.state_dict())
    for module in reference.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
    return {"reference": reference, "ours": ours}


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of activations kept for the backward pass; each storage counts once."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images)
    total = sum(size for _, size in storages.values())
    del outputs
    return total


def step(model: nn.Module, images: Tensor) -> None:
    """Forward and backward of a training iteration."""
    sum(output.sum() for output in model(images).values()).backward()
    model.zero_grad()


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forward(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Inference."""
    with torch.no_grad():
        return model(images)


def compare(size: str, hw: tuple[int, int], args: argparse.Namespace) -> dict[str, object]:
    """All figures of one model at one image size."""
    device = torch.device(args.device)
    models = {name: model.to(device) for name, model in build(size).items()}
    torch.manual_seed(1)
    images = torch.randn(args.batch, 3, *hw, device=device)
    for model in models.values():
        model.eval()
    expected, found = (forward(models[name], images) for name in ("reference", "ours"))
    difference = max(float((expected[k] - found[k]).abs().max()) for k in expected)
    for model in models.values():
        model.train()
    saved = {name: saved_bytes(model, images) for name, model in models.items()}
    if args.compile:
        models["compiled"] = torch.compile(models["ours"])
    times: dict[str, dict[str, list[float]]] = {n: {"forward": [], "step": []} for n in models}
    for round_ in range(args.rounds + 1):
        for name, model in models.items():
            for kind, run in (("forward", forward), ("step", step)):
                seconds = timed(lambda m=model, r=run: r(m, images), device)
                if round_ > 0:  # the first round warms up
                    times[name][kind].append(seconds)
    medians = {n: {k: statistics.median(v) for k, v in t.items()} for n, t in times.items()}
    return {
        "model": size,
        "image": list(hw),
        "difference": difference,
        "seconds": medians,
        "saved_megabytes": {name: size / 1e6 for name, size in saved.items()},
    }


def print_row(result: dict[str, object]) -> None:
    """One line for each implementation, with its share of the reference."""
    seconds, saved = result["seconds"], result["saved_megabytes"]
    height, width = result["image"]
    print(f"{result['model']} {height}x{width}, largest difference {result['difference']:.1e}")
    base = seconds["reference"]
    for name, figures in seconds.items():
        line = f"  {name:10s}"
        for kind in ("forward", "step"):
            line += f"  {kind} {figures[kind]:7.3f} s ({figures[kind] / base[kind]:.2f}x)"
        if name in saved:
            share = saved[name] / saved["reference"]
            line += f"  saved {saved[name]:7.0f} MB ({share:.2f}x)"
        print(line, flush=True)


def parse_size(text: str) -> tuple[int, int]:
    """HxW in pixels."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"a size is HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("tiny", "small", "base", "large")
    parser.add_argument("--models", nargs="+", choices=names, default=["tiny", "small"])
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[(800, 1216), (512, 512)])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of ours")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}")
    results = []
    for size in args.models:
        for hw in args.sizes:
            results.append(compare(size, hw, args))
            print_row(results[-1])
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
