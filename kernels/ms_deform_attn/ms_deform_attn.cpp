// Schemas of multi-scale deformable attention. Kernels register in
// *_<device>.cpp; fake, autograd and autocast rules and the PyTorch
// implementation for every other device register in
// vitadapter/layers/ms_deform_attn.py, which must repeat these two lines.

#include <torch/library.h>

TORCH_LIBRARY(vitadapter, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, "
      "SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
}
