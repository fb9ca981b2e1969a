"""Folders as other quantizers write them, and the weights that they stand for.

Each layout is written here by its own definition, tensor by tensor, and undone in fp32: transformers
runs the model with the weights undone. What mlx-lm reads of it (AWQ) must give the same. mlx-lm takes
GPTQ's words for AWQ's, so that is AutoGPTQ's own layout (`qlinear_cuda.py`), and Model Optimizer's is
that of its `export` module.
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


def gptq(at: str, weight: numpy.ndarray, bits: int = 4, group: int = GROUP, less: int = 1) -> tuple[dict, numpy.ndarray]:
    """AutoGPTQ: w = s (q - z). Words of a column hold neighbours below one another, the first in the lowest
    bits; those of the zeros, which are stored less 1, neighbours of a row. `g_idx` is the group of each input."""
    highest = 2**bits - 1
    grouped = weight.reshape(weight.shape[0], -1, group)
    low, high = grouped.min(-1), grouped.max(-1)
    scales = ((high - low) / highest).astype(numpy.float16)
    wide = scales.astype(numpy.float32)
    zeros = numpy.clip(numpy.round(-low / wide), 1, highest)
    codes = numpy.clip(numpy.round(grouped / wide[..., None]) + zeros[..., None], 0, highest)

    def packed(numbers: numpy.ndarray) -> numpy.ndarray:
        """Neighbours of a row in a word."""
        words = numbers.reshape(numbers.shape[0], -1, 32 // bits).astype(numpy.uint32)
        words = sum(words[..., place] << numpy.uint32(bits * place) for place in range(32 // bits))
        return words.astype(numpy.uint32).view(numpy.int32)

    tensors = {
        f"{at}.qweight": torch.from_numpy(packed(codes.reshape(weight.shape)).T.copy()),
        f"{at}.qzeros": torch.from_numpy(packed(zeros.T - less).copy()),
        f"{at}.scales": torch.from_numpy(scales.T.copy()),
        f"{at}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // group,
    }
    return tensors, ((codes - zeros[..., None]) * wide[..., None]).reshape(weight.shape)


def gptq8(at: str, weight: numpy.ndarray) -> tuple[dict, numpy.ndarray]:
    """Eight bits, zeros as they are, and one group per row, which AutoGPTQ calls -1."""
    return gptq(at, weight, bits=8, group=weight.shape[1], less=0)


def modelopt_fp8(at: str, weight: numpy.ndarray) -> tuple[dict, numpy.ndarray]:
    """e4m3 with a factor for all; the factor of inputs is for products in fp8."""
    factor = torch.tensor(numpy.abs(weight).max() / 448)
    codes = (torch.from_numpy(weight) / factor).to(torch.float8_e4m3fn)
    tensors = {f"{at}.weight": codes, f"{at}.weight_scale": factor, f"{at}.input_scale": torch.tensor(0.01)}
    return tensors, (codes.float() * factor).to(torch.bfloat16).float().numpy()


E2M1 = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], numpy.float32)


def modelopt_nvfp4(at: str, weight: numpy.ndarray) -> tuple[dict, numpy.ndarray]:
    """e2m1, two to a byte, the first in the lower half; an e4m3 factor for 16, an fp32 factor for all."""
    grouped = weight.reshape(weight.shape[0], -1, 16)
    whole = numpy.float32(numpy.abs(weight).max() / (6 * 448))
    scales = torch.from_numpy(numpy.abs(grouped).max(-1) / 6 / whole).to(torch.float8_e4m3fn)
    wide = (scales.float() * torch.tensor(whole)).numpy()
    codes = numpy.abs(grouped[..., None] / wide[..., None, None] - E2M1).argmin(-1)
    pairs = codes.reshape(weight.shape[0], -1, 2).astype(numpy.uint8)
    tensors = {
        f"{at}.weight": torch.from_numpy((pairs[..., 0] | pairs[..., 1] << 4).astype(numpy.uint8)),
        f"{at}.weight_scale": scales,
        f"{at}.weight_scale_2": torch.tensor(whole),
        f"{at}.input_scale": torch.tensor(0.01),
    }
    undone = torch.from_numpy((E2M1[codes] * wide[..., None]).reshape(weight.shape))
    return tensors, undone.to(torch.bfloat16).float().numpy()


def compressed(at: str, weight: numpy.ndarray, group: int = GROUP) -> tuple[dict, numpy.ndarray]:
    """compressed-tensors' pack-quantized: w = s (q - 8), eight neighbours of a row in a word."""
    grouped = weight.reshape(weight.shape[0], -1, group)
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


def fp8(at: str, weight: numpy.ndarray, high: int = 48, wide: int = 40) -> tuple[dict, numpy.ndarray]:
    """DeepSeek's and Qwen's fp8: e4m3 with a factor per block, here of a size which divides no matrix."""
    rows, columns = -(-weight.shape[0] // high), -(-weight.shape[1] // wide)
    whole = numpy.zeros((rows * high, columns * wide), numpy.float32)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    blocks = torch.from_numpy(whole.reshape(rows, high, columns, wide))
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
    "llama-gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}),
    "llama-gptq-8bit": (gptq8, {
        "quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": False, "sym": False, "checkpoint_format": "gptq_v2",
    }),
    "llama-modelopt-fp8": (modelopt_fp8, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}),
    # This one is kept in a file of its own, as Model Optimizer does for engines that read no config.json.
    "llama-modelopt-nvfp4": (modelopt_nvfp4, {
        "producer": {"name": "modelopt", "version": "0.31.0"},
        "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
    }),
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
    beside = "producer" in settings
    more = {} if beside else {"quantization_config": settings}
    for out, tensors, more in ((folder, stored, more), (undone, dense, {})):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _fixture.write_json(out / "config.json", {**config, **more})
        safetensors.torch.save_file(tensors, out / "model.safetensors", {"format": "pt"})
    if beside:
        _fixture.write_json(folder / "hf_quant_config.json", settings)
