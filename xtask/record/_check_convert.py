"""`mlxgk convert` beside `mlx_lm.convert`: the same bytes, and logits that mlx-lm computes from ours.

Usage: python _check_convert.py PATH-OF-MLXGK

A dense and an expert model are converted in each mode, at each width and group size they allow, and by
each recipe. Every folder of ours is loaded by mlx-lm. Fails where a tensor or the config's
quantization differs, or a logit by more than 1e-5.
"""

import pathlib
import subprocess
import sys
import tempfile

import mlx.core as mx
import numpy
from mlx_lm import utils

import _fixture
import _mlx_convert
import convert

MODELS = pathlib.Path(__file__).parent.parent.parent / "fixtures" / "models"
PROMPT = [5, 17, 30, 2, 91, 44, 8, 60, 3]
TOLERANCE = 1e-5


def steps() -> list[dict]:
    affine = [{"bits": bits, "group-size": group} for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
    modes = [{"mode": mode} for mode in ("mxfp4", "mxfp8", "nvfp4")]
    recipes = [
        {"recipe": recipe, "group-size": group}
        for recipe in ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
        for group in (32, 64)
    ]
    return [{}, {"dtype": "float16"}, {"dtype": "float32", "bits": 4}, *affine, *modes, *recipes]


def logits(folder: pathlib.Path) -> numpy.ndarray:
    """What mlx-lm computes in fp32: MLX has no experts in half precision on a CPU."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    return numpy.array(model(mx.array([PROMPT]))[0].astype(mx.float32))


def main() -> None:
    mlxgk = sys.argv[1]
    compared, furthest = 0, 0.0
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        # Sources without a quantization, and wide enough for groups of 64.
        for name in ("llama-q4", "qwen3-moe-q4"):
            source = work / name
            _mlx_convert.convert(MODELS / name, source, {"dequantize": True})
            for index, step in enumerate(steps()):
                ours, theirs = work / f"{name}-{index}-ours", work / f"{name}-{index}-theirs"
                _mlx_convert.convert(source, theirs, step)
                flags = _mlx_convert.flags(step)
                subprocess.run([mlxgk, "convert", source, "--out", ours, *flags], check=True, stdout=subprocess.DEVNULL)
                about = f"{name} {' '.join(flags)}"
                if convert.tensors(ours / "model.safetensors") != convert.tensors(theirs / "model.safetensors"):
                    sys.exit(f"{about}: the tensors differ")
                configs = [_fixture.read_json(it / "config.json").get("quantization") for it in (ours, theirs)]
                if configs[0] != configs[1]:
                    sys.exit(f"{about}: the configs differ: {configs[0]} and {configs[1]}")
                difference = float(numpy.abs(logits(ours) - logits(theirs)).max())
                furthest = max(furthest, difference)
                if not difference <= TOLERANCE:
                    sys.exit(f"{about}: the logits differ by {difference}")
                compared += 1
    print(f"{compared} conversions: the same bytes as mlx-lm's, logits at most {furthest} apart")


if __name__ == "__main__":
    main()
