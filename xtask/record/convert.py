"""What mlx-lm makes of some of the recorded models when it converts, quantizes and dequantizes them.

Of each tensor a digest is kept, so that every byte is compared and few are stored.
"""

import hashlib
import json
import pathlib
import tempfile

import _fixture
import _mlx_convert

CASES = [
    ("qwen3-moe", [{}]),
    ("qwen3-moe", [{"recipe": "mixed_4_6", "group-size": 32}]),
    ("gemma2-5x", [{"recipe": "mixed_2_6", "group-size": 32}]),
    ("gemma3-5x", [{"dtype": "bfloat16"}]),
    ("phi3", [{"bits": 8, "group-size": 32}]),
    ("qwen3", [{"bits": 5, "group-size": 32}]),
    ("llama-llama3", [{"mode": "mxfp4"}]),
    ("llama-llama3", [{"mode": "mxfp8"}]),
    ("llama-llama3", [{"mode": "nvfp4", "dtype": "float32"}]),
    ("qwen3_5", [{}]),
    ("qwen3_5", [{"bits": 4, "group-size": 32, "dtype": "float32"}]),
    ("qwen3-next", [{}]),
    ("qwen3-next", [{"recipe": "mixed_3_6", "group-size": 32}]),
    ("gemma3-q4", [{"dequantize": True}]),
    ("qwen2-mixed", [{"dequantize": True, "dtype": "bfloat16"}]),
    ("qwen3-moe-q4", [{"dequantize": True}]),
    ("qwen3-moe-q4", [{"dequantize": True}, {"mode": "mxfp4"}]),
    ("qwen3-moe-q4", [{"dequantize": True}, {"bits": 3, "group-size": 32}]),
    ("qwen3-moe-q4", [{"dequantize": True}, {"mode": "nvfp4"}, {"dequantize": True}]),
    ("deepseek-v2", [{}]),
    ("deepseek-v3", [{}]),
    ("gemma4", [{}]),
    ("gpt-oss-mxfp4", [{}]),
    ("gpt-oss-mxfp4", [{}, {"dequantize": True}]),
    ("granite-hybrid", [{}]),
    ("lfm2-moe", [{}]),
    ("mistral4", [{}]),
]


def tensors(path: pathlib.Path) -> dict[str, list]:
    """Dtype, shape and digest of each tensor of a safetensors file."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__")
    found = {}
    for name, about in sorted(header.items()):
        start, end = about["data_offsets"]
        digest = hashlib.sha256(data[begin + start : begin + end]).hexdigest()[:16]
        found[name] = [about["dtype"], about["shape"], digest]
    return found


def record(out: pathlib.Path) -> None:
    models = out.parent / "models"
    cases = []
    for source, steps in CASES:
        with tempfile.TemporaryDirectory() as folder:
            at = models / source
            for index, step in enumerate(steps):
                _mlx_convert.convert(at, pathlib.Path(folder) / str(index), step)
                at = pathlib.Path(folder) / str(index)
            index = _fixture.read_json(at / "model.safetensors.index.json")
            cases.append({
                "source": source,
                "steps": steps,
                "parameters": index["metadata"]["total_parameters"],
                "config": _fixture.read_json(at / "config.json"),
                "tensors": tensors(at / "model.safetensors"),
            })  # fmt: skip
    _fixture.write_json(out / "cases.json", {"made_by": _fixture.made_by("mlx-lm", "mlx"), "cases": cases}, lines_to=3)
