"""What the ONNX parser of TensorRT 10.15 can read.

From the table in `docs/operators.md` of github.com/onnx/onnx-tensorrt: operators with a "Y". uint8
is only supported for inputs and outputs of the network.
"""

import onnx
from onnx import TensorProto

_TABLE = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape
Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu
Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If ImageScaler
InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish
Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu
QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RMSNormalization RNN RoiAlign RotaryEmbedding
Round STFT ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin
Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
SUPPORTED = frozenset(_TABLE.split())
PLUGINS = {"MultiscaleDeformableAttnPlugin_TRT"}


def unsupported(model: onnx.ModelProto) -> set[str]:
    """What the parser cannot read of a model: operators, and tensors of uint8."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {node.op_type for node in graph.node} - SUPPORTED - PLUGINS
    inner = {
        value.name
        for value in graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.UINT8
    }
    scattered = {
        node.op_type
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "ScatterND" and attribute.name == "reduction" and attribute.s != b"none"
    }
    return found | inner | scattered
