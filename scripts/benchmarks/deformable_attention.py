"""The attentions of ViT-Adapter as problems for deformable-attention operators and modules."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attention_peers import load_peers
from vitadapter.ops import MSDeformAttn, ms_deform_attn, ms_deform_attn_fused

__all__ = ["SIZES", "Contender", "ModuleProblem", "OperatorProblem", "UnfusedMSDeformAttn"]

SIZES = {"T": (192, 6, 1.0), "S": (384, 6, 1.0), "B": (768, 12, 0.5)}  # channels, heads, ratio
_POINTS = 4
_LARGE = 32 * 2**20  # glibc gives larger blocks back, so that they page-fault at every call


def _centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([x, y], -1).reshape(-1, 2)


def _shapes_and_queries(
    use: str, image: tuple[int, int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Maps that an injector or extractor attends to, and those whose pixels ask."""
    scales = [(image[0] // stride, image[1] // stride) for stride in (8, 16, 32)]
    return (scales, scales[1:2]) if use == "injector" else (scales[1:2], scales)


def _locations_and_weights(
    shapes: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """What every project computes before it calls its operator."""
    sizes = offsets.new_tensor([(width, height) for height, width in shapes])[:, None]
    locations = reference[:, :, None, :, None] + offsets / sizes
    return locations, logits.flatten(3).softmax(-1).reshape(logits.shape)


@dataclass
class Contender:
    """One implementation."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]  # that get gradients
    baseline: str  # what it is compared with

    def answers(self, grad: Tensor) -> list[Tensor]:
        """The output, and the gradients of the leaves for one of the output."""
        output = self.call()
        return [output.detach(), *torch.autograd.grad(output, self.leaves, grad)]


class OperatorProblem:
    """One attention at its initial offsets plus noise of a pixel, without projections.

    Args:
        use: ``"injector"`` or ``"extractor"``.
        size: of the model, a key of :data:`SIZES`.
        batch: images.
        image: (height, width) in pixels.
        device: of all tensors.
        dtype: of values, offsets and logits.
    """

    def __init__(
        self,
        use: str,
        size: str,
        batch: int,
        image: tuple[int, int] = (800, 1216),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        channels, heads, ratio = SIZES[size]
        self.shapes, queries = _shapes_and_queries(use, image)
        reference = torch.cat([_centres(*shape) for shape in queries])[None, :, None]
        module = MSDeformAttn(channels, heads, len(self.shapes), _POINTS, ratio)
        taps = (batch, reference.shape[1], heads, len(self.shapes), _POINTS)
        torch.manual_seed(0)
        bias = module.sampling_offsets.bias.detach().reshape(*taps[2:], 2)
        offsets = bias + torch.randn(*taps, 2)
        logits = torch.randn(taps)
        tokens = sum(h * w for h, w in self.shapes)
        head_dim = int(channels * ratio) // heads

        def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            return tensor.to(device, dtype).requires_grad_()

        self.value = leaf(torch.randn(batch, tokens, heads, head_dim), dtype)
        self.reference = reference.to(device)
        self.offsets, self.logits = leaf(offsets, dtype), leaf(logits, dtype)
        locations, weights = _locations_and_weights(self.shapes, reference, offsets, logits)
        self.locations = leaf(locations, torch.float32)
        self.weights = leaf(weights, torch.float32)
        self.grad = torch.randn(batch, taps[1], heads * head_dim).to(device, dtype)

    def in_float32(self) -> "OperatorProblem":
        """The same problem, with the same numbers, in float32."""
        problem = copy.copy(self)
        for name in ("value", "offsets", "logits", "grad"):
            tensor = getattr(self, name)
            setattr(problem, name, tensor.detach().float().requires_grad_(tensor.requires_grad))
        return problem

    @property
    def bytes(self) -> int:
        """What must cross the memory bus in the fused forward pass."""
        own = (self.value, self.offsets, self.logits, self.grad)
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    @property
    def bytes_of_both(self) -> int:
        """What must cross it in the fused forward and backward pass together."""
        with_gradients = (self.value, self.offsets, self.logits)
        written = sum(tensor.numel() * tensor.element_size() for tensor in with_gradients)
        return 2 * self.bytes + written

    @property
    def large(self) -> bool:
        """Whether the output or the values are more than 32 MiB."""
        return any(t.numel() * t.element_size() > _LARGE for t in (self.value, self.grad))

    def contenders(self) -> dict[str, Contender]:
        """Our operators, what they replace, and every peer that can be imported."""
        unfused = (self.value, self.shapes, self.locations, self.weights)
        fused = (self.value, self.shapes, self.reference, self.offsets, self.logits)
        given = [self.value, self.locations, self.weights]
        raw = [self.value, self.offsets, self.logits]
        plain, composed = "grid_sample", "softmax + grid_sample"
        found = {
            plain: Contender(lambda: _grid_sample(*unfused), given, plain),
            "ours": Contender(lambda: ms_deform_attn(*unfused), given, plain),
            composed: Contender(lambda: self._composed(), raw, composed),
            "ours, fused": Contender(lambda: ms_deform_attn_fused(*fused), raw, composed),
        }
        return found | {name: Contender(call, given, plain) for name, call in self._peers().items()}

    def _composed(self) -> Tensor:
        taps = _locations_and_weights(self.shapes, self.reference, self.offsets, self.logits)
        return _grid_sample(self.value, self.shapes, *taps)

    def _peers(self) -> dict[str, Callable[[], Tensor]]:
        shapes = torch.tensor(self.shapes, device=self.value.device)
        counts = shapes.prod(1)
        arguments = (self.value, shapes, counts.cumsum(0) - counts, self.locations, self.weights)
        found, _ = load_peers(self.value.device.type)
        return {name: partial(peer, *arguments) for name, peer in found.items()}


def _grid_sample(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As every project writes it (Deformable DETR's debugging function)."""
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    samples, first = [], 0
    for level, (height, width) in enumerate(shapes):
        tokens = value[:, first : first + height * width].flatten(2).transpose(1, 2)
        level_grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(
            F.grid_sample(
                tokens.reshape(batch * heads, head_dim, height, width),
                level_grid.to(value.dtype),
                align_corners=False,
            )
        )
        first += height * width
    weights = weights.to(value.dtype).transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * head_dim, queries).transpose(1, 2).contiguous()


class UnfusedMSDeformAttn(MSDeformAttn):
    """The same module with softmax and location arithmetic in PyTorch, as in all other projects."""

    sample = staticmethod(ms_deform_attn)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        batch, queries, _ = query.shape
        taps = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).reshape(*taps, 2)
        logits = self.attention_weights(query).reshape(taps)
        taps = _locations_and_weights(spatial_shapes, reference_points, offsets, logits)
        value = self.value_proj(value).unflatten(-1, (self.num_heads, -1))
        return self.output_proj(self.sample(value, spatial_shapes, *taps))


class ModuleProblem:
    """One attention with its projections: :class:`MSDeformAttn` against the unfused module.

    Arguments as for :class:`OperatorProblem`.
    """

    def __init__(
        self,
        use: str,
        size: str,
        batch: int,
        image: tuple[int, int] = (800, 1216),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        channels, heads, ratio = SIZES[size]
        self.shapes, queries = _shapes_and_queries(use, image)
        tokens = [sum(h * w for h, w in shapes) for shapes in (self.shapes, queries)]
        torch.manual_seed(0)
        self.value, self.query = (
            torch.randn(batch, n, channels).to(device, dtype).requires_grad_() for n in tokens
        )
        self.reference = torch.cat([_centres(*shape) for shape in queries])[None, :, None]
        self.reference = self.reference.to(device)
        self.grad = torch.randn_like(self.query)
        self.modules: dict[str, nn.Module] = {}
        for name, kind in (("unfused module", UnfusedMSDeformAttn), ("module", MSDeformAttn)):
            module = kind(channels, heads, len(self.shapes), _POINTS, ratio).to(device, dtype)
            if self.modules:
                module.load_state_dict(self.modules["unfused module"].state_dict())
            else:  # offsets of a pixel about the initial ones
                for layer in (module.sampling_offsets, module.attention_weights):
                    nn.init.normal_(layer.weight, std=channels**-0.5)
            self.modules[name] = module

    def contenders(self) -> dict[str, Contender]:
        """Both modules; the unfused one is the baseline."""
        arguments = (self.query, self.reference, self.value, self.shapes)
        return {
            name: Contender(
                lambda module=module: module(*arguments),
                [self.query, self.value, *module.parameters()],
                "unfused module",
            )
            for name, module in self.modules.items()
        }
