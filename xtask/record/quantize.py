"""What MLX makes of small matrices in each quantization mode, and back: bytes, not numbers.

Recorded on the CPU, whose results `convert` gives to the bit. Rows are chosen for what they reach:
ordinary weights, groups of zeros and of one sign, numbers of very different size, and ties.
"""

import hashlib
import pathlib

import mlx.core as mx
import numpy

import _fixture

COLUMNS = 128
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
AFFINE = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
OTHERS = [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


def matrix() -> numpy.ndarray:
    generator = numpy.random.default_rng(12)
    ordinary = generator.standard_normal(COLUMNS) * 0.05
    signed = numpy.abs(generator.standard_normal(COLUMNS)) * 3.0
    signed[:32] = 0.0
    signed[64:96] *= -1.0
    wide = generator.standard_normal(COLUMNS) * numpy.exp(generator.uniform(-14.0, 3.0, COLUMNS))
    # Quarters up to 6: half-way between the four-bit numbers, and between many integer steps.
    ties = generator.integers(-24, 25, COLUMNS) / 4.0
    ties[::32] = 6.0
    return numpy.stack([ordinary, signed, wide, ties]).astype(numpy.float32)


def raw(array: mx.array) -> bytes:
    return numpy.array(array.view(mx.uint8)).tobytes()


def record(out: pathlib.Path) -> None:
    mx.set_default_device(mx.cpu)
    for name, dtype in DTYPES.items():
        weight = mx.array(matrix()).astype(dtype)
        cases = []
        for mode, bits, group in AFFINE + OTHERS:
            words, scales, *biases = mx.quantize(weight, group, bits, mode=mode)
            back = mx.dequantize(words, scales, *biases, group_size=group, bits=bits, mode=mode)
            cases.append({
                "mode": mode, "bits": bits, "group_size": group,
                "words": raw(words).hex(), "scales": raw(scales).hex(),
                "biases": "".join(raw(it).hex() for it in biases),
                "dequantized": str(back.dtype).split(".")[-1],
                "dequantized_sha256": hashlib.sha256(raw(back)).hexdigest(),
            })  # fmt: skip
        _fixture.write_json(
            out / f"{name}.json",
            {"made_by": _fixture.made_by("mlx", "numpy"), "input": raw(weight).hex(), "cases": cases},
        )
