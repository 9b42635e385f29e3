// Schemas of multi-scale deformable attention. Kernels register in
// *_<device>.cpp; fake, autograd and autocast rules and the PyTorch
// implementation for every other device register in vitadapter/ops/library.py,
// which makes the same schemas where this file is not compiled.

#include <torch/library.h>

TORCH_LIBRARY(vitadapter, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, "
      "SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  // From reference points (normalised), raw offsets (pixels of the level) and
  // raw logits (softmax over levels and points).
  m.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, "
      "Tensor attention_logits) -> Tensor");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, "
      "SymInt[] spatial_shapes, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}
