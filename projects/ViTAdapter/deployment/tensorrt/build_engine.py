"""Builds an engine of TensorRT from an ONNX file of `vitadapter export`. It has NOT been run.

    python build_engine.py detector.onnx detector.engine --opt 800 1216 --max 1344 1344

Every layer computes in the type that the file gives it (strongly typed). An engine of half
precision is therefore one of a file of `--precision fp16`, in which layer norms, softmax, sampling
locations, the decoding of boxes and suppression are float32. The package `tensorrt` 10.6 or newer
is needed. Names of classes and the like stay in the ONNX file.
"""

import argparse
import sys
from pathlib import Path

LEAST = 64  # pixels: an exported file takes images with sides of more than 32
OLDEST = (10, 6)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("onnx", type=Path, help="of --format onnx or tensorrt")
    parser.add_argument("engine", type=Path, help="to write")
    sizes = {"min": "smallest", "opt": "usual, for which it is made fast", "max": "largest"}
    for name, text in sizes.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            nargs=2,
            metavar=("H", "W"),
            default=(LEAST, LEAST) if name == "min" else None,
            required=name != "min",
            help=f"{text} height and width of images",
        )
    parser.add_argument("--workspace", type=float, default=4.0, help="memory to build in, GiB")
    args = parser.parse_args()
    if not args.onnx.is_file():
        parser.error(f"there is no file {args.onnx}")
    for least, usual, most in zip(args.min, args.opt, args.max, strict=True):
        if not LEAST <= least <= usual <= most:
            found = f"{args.min}, {args.opt}, {args.max}"
            parser.error(f"{LEAST} <= --min <= --opt <= --max is needed, got {found}")
    return args


def build(args: argparse.Namespace) -> bytes:
    """Returns the engine; raises ValueError if TensorRT is missing, too old or refuses the file."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise ValueError("this needs the package tensorrt: pip install tensorrt") from error
    if tuple(map(int, trt.__version__.split(".")[:2])) < OLDEST:
        raise ValueError(f"TensorRT 10.6 or newer is needed, got {trt.__version__}")
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(args.onnx)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ValueError(f"TensorRT cannot read {args.onnx}: {errors}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(args.workspace * 2**30))
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((1, 3, *size) for size in (args.min, args.opt, args.max)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("TensorRT has built no engine; what it has printed says why")
    return bytes(engine)


if __name__ == "__main__":
    arguments = parse_args()
    try:
        arguments.engine.write_bytes(build(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
