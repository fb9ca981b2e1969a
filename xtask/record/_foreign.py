"""Folders as other quantizers write them, and the weights that they stand for.

Each layout is written here by its own definition, tensor by tensor, and undone in fp32: transformers
runs the model with the weights undone. What mlx-lm reads of it (AWQ) must give the same.
"""

import pathlib
import shutil

import numpy
import safetensors.torch
import torch

import _fixture

GROUP = 64


def quantized(name: str) -> bool:
    """The products inside the blocks are quantized; embeddings, norms and the head are not."""
    return name.endswith("_proj.weight")


def groups_of(weight: numpy.ndarray) -> numpy.ndarray:
    return weight.reshape(weight.shape[0], -1, GROUP)


def awq(at: str, weight: numpy.ndarray) -> tuple[dict, numpy.ndarray]:
    """AutoAWQ's gemm version: w = s (q - z), eight neighbours of a column in a word, evens first."""
    grouped = groups_of(weight)
    low, high = grouped.min(-1), grouped.max(-1)
    # Short enough that mlx-lm, which keeps -z s in fp16, does not round it.
    scales = (((high - low) / 15).astype(numpy.float16).view(numpy.uint16) & 0xFFF0).view(numpy.float16)
    wide = scales.astype(numpy.float32)
    zeros = numpy.clip(numpy.round(-low / wide), 0, 15)
    codes = numpy.clip(numpy.round(grouped / wide[..., None]) + zeros[..., None], 0, 15)

    def packed(numbers: numpy.ndarray) -> torch.Tensor:
        words = numbers.reshape(numbers.shape[0], -1, 8).astype(numpy.uint32)
        words = sum(words[..., column] << numpy.uint32(4 * place) for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]))
        return torch.from_numpy(words.astype(numpy.uint32).view(numpy.int32).copy())

    tensors = {
        f"{at}.qweight": packed(codes.reshape(weight.shape).T),
        f"{at}.qzeros": packed(zeros.T),
        f"{at}.scales": torch.from_numpy(scales.T.copy()),
    }
    return tensors, ((codes - zeros[..., None]) * wide[..., None]).reshape(weight.shape)


def compressed(at: str, weight: numpy.ndarray) -> tuple[dict, numpy.ndarray]:
    """compressed-tensors' pack-quantized: w = s (q - 8), eight neighbours of a row in a word."""
    grouped = groups_of(weight)
    scales = torch.from_numpy(numpy.abs(grouped).max(-1) / 7.5).to(torch.bfloat16)
    wide = scales.float().numpy()
    codes = numpy.clip(numpy.round(grouped / wide[..., None]) + 8, 0, 15)
    words = codes.reshape(weight.shape[0], -1, 8).astype(numpy.uint32)
    words = sum(words[..., place] << numpy.uint32(4 * place) for place in range(8)).astype(numpy.uint32)
    tensors = {
        f"{at}.weight_packed": torch.from_numpy(words.view(numpy.int32).copy()),
        f"{at}.weight_scale": scales,
        f"{at}.weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    return tensors, ((codes - 8) * wide[..., None]).reshape(weight.shape)


def fp8(at: str, weight: numpy.ndarray) -> tuple[dict, numpy.ndarray]:
    """DeepSeek's and Qwen's fp8: e4m3 with a factor per block, here of 48 x 40, which divides no matrix."""
    rows, columns = -(-weight.shape[0] // 48), -(-weight.shape[1] // 40)
    whole = numpy.zeros((rows * 48, columns * 40), numpy.float32)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    blocks = torch.from_numpy(whole.reshape(rows, 48, columns, 40))
    factors = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / factors[:, None, :, None]).to(torch.float8_e4m3fn)
    undone = (codes.float() * factors[:, None, :, None]).reshape(whole.shape)
    cut = (slice(weight.shape[0]), slice(weight.shape[1]))
    tensors = {
        f"{at}.weight": codes.reshape(whole.shape)[cut].contiguous(),
        f"{at}.weight_scale_inv": factors,
    }
    # As transformers and mlx-lm undo it.
    return tensors, undone[cut].to(torch.bfloat16).float().numpy()


LAYOUTS = {
    "llama-awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "llama-compressed": (compressed, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}}},
        "ignore": ["lm_head"],
    }),
    "llama-fp8": (fp8, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 40]}),
}  # fmt: skip


def convert(source: pathlib.Path, folder: pathlib.Path, undone: pathlib.Path, name: str) -> None:
    """Writes `source` into `folder` in the layout, and into `undone` with the weights it stands for."""
    layout, settings = LAYOUTS[name]
    stored, dense = {}, {}
    for key, weight in safetensors.torch.load_file(source / "model.safetensors").items():
        if quantized(key):
            tensors, wide = layout(key.removesuffix(".weight"), weight.float().numpy())
            stored |= tensors
            dense[key] = torch.from_numpy(wide.astype(numpy.float32))
        else:
            stored[key] = weight
            dense[key] = weight.float()
    config = _fixture.read_json(source / "config.json")
    for out, tensors, more in ((folder, stored, {"quantization_config": settings}), (undone, dense, {})):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _fixture.write_json(out / "config.json", {**config, **more})
        safetensors.torch.save_file(tensors, out / "model.safetensors", {"format": "pt"})
