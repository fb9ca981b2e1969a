"""Folders as mlx-lm writes them, and what mlx-lm computes from them.

The source is a tiny transformers folder; mlx-lm's own functions load, quantize and save it. The
reference runs the saved folder with every float in fp32. Its log-probabilities must agree with
those of transformers on the dequantized weights, so that a quirk of mlx-lm's graph (some exist)
does not become our target.
"""

import pathlib
import re
import shutil
import tempfile

import mlx.core as mx
import numpy
import safetensors.torch
import torch
from mlx_lm import utils

import _fixture
import _tiny


def _gather_qmm(*arguments, global_scale=None, _original=mx.gather_qmm, **options):
    """mlx-lm 0.32.2 passes `global_scale`, which mlx 0.32.2 does not know; only None is dropped."""
    assert global_scale is None
    return _original(*arguments, **options)


mx.gather_qmm = _gather_qmm


def scheme_of(name: str):
    """How each model is quantized: mode, group size and bits, and exceptions by module path."""

    def mixed(path, module):
        """Widths from 3 to 8 bits side by side, one layer left alone, embeddings in 6 bits."""
        if "layers.1.self_attn" in path:
            return False
        if "embed_tokens" in path:
            return {"group_size": 32, "bits": 6, "mode": "affine"}
        if "v_proj" in path:
            return {"group_size": 64, "bits": 3, "mode": "affine"}
        if "lm_head" in path:
            return {"group_size": 64, "bits": 8, "mode": "affine"}
        return True

    def experts_alone(path, module):
        """What OpenAI's models become: experts in the mode, all else affine."""
        return True if "switch_mlp" in path else {"group_size": 64, "bits": 8}

    return {
        "llama-q4": ("affine", 32, 4, None),
        "qwen3-q8": ("affine", 64, 8, None),
        "qwen2-mixed": ("affine", 32, 4, mixed),
        # mlx-lm's own rule for this family keeps the router in 8 bits.
        "qwen3-moe-q4": ("affine", 32, 4, None),
        "gemma3-q4": ("affine", 64, 4, None),
        "qwen3_5-q4": ("affine", 64, 4, None),
        # So do those of gpt-oss and Gemma 4.
        "gpt-oss-q4": ("affine", 64, 4, None),
        "glm4-moe-q4": ("affine", 64, 4, None),
        "gemma4-q4": ("affine", 64, 4, None),
        "llama-mxfp4": ("mxfp4", 32, 4, None),
        "qwen3-mxfp8": ("mxfp8", 32, 8, None),
        "qwen2-nvfp4": ("nvfp4", 16, 4, None),
        "qwen3-moe-mxfp4": ("mxfp4", 32, 4, experts_alone),
        "qwen3-moe-mxfp8": ("mxfp8", 32, 8, None),
        "qwen3-moe-nvfp4": ("nvfp4", 16, 4, None),
    }[name]


def convert(source: pathlib.Path, folder: pathlib.Path, name: str) -> None:
    """Quantizes `source` into `folder` with mlx-lm."""
    mx.set_default_device(mx.cpu)
    shutil.rmtree(folder, ignore_errors=True)
    mode, group_size, bits, predicate = scheme_of(name)
    if utils.load_config(source)["model_type"] == "gpt_oss":
        in_mlx_layout(source)
    model, config = utils.load_model(source)
    model, config = utils.quantize_model(model, config, group_size, bits, mode, quant_predicate=predicate)
    utils.save_model(folder, model)
    utils.save_config(config, folder / "config.json")


def restack(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Saves an unquantized folder again in mlx-lm's layout."""
    mx.set_default_device(mx.cpu)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as published:
        if utils.load_config(source)["model_type"] == "kimi_linear":
            source = as_published(source, pathlib.Path(published) / source.name)
        model, config = utils.load_model(source)
        utils.save_model(folder, model)
        utils.save_config(config, folder / "config.json")


def as_published(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Kimi Linear with dense layers under the names they are published under, which transformers reads but does not write."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    plain = safetensors.torch.load_file(path)
    renamed = {re.sub(r"\.block_sparse_moe\.((gate|up|down)_proj)", r".mlp.\1", name): it for name, it in plain.items()}
    safetensors.torch.save_file(renamed, path, {"format": "pt"})
    # mlx-lm asks for fields that have defaults in transformers.
    config = _fixture.read_json(folder / "config.json")
    asked = {"rms_norm_eps": 1e-5, "model_max_length": 512, "rope_theta": 1e4, "head_dim": config["qk_rope_head_dim"]}
    _fixture.write_json(folder / "config.json", {**asked, **config})
    return folder


def cases(folder: pathlib.Path, prompts: list[list[int]], new_tokens: int) -> tuple[dict, float]:
    """Forward and greedy cases from mlx-lm in fp32, and the narrowest gap between two best tokens."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    reference = dequantized(folder)
    forward, greedy, gap = [], [], float("inf")
    for prompt in prompts:
        logprobs = log_softmax(model, prompt)
        last = len(prompt) - 1
        positions = sorted({0, last // 2, last})
        forward.append({
            "prompt": prompt,
            "logprobs": _fixture.rounded([logprobs[i, token] for i, token in enumerate(prompt[1:])]),
            "positions": positions,
            "rows": _fixture.rounded(logprobs[positions]),
        })  # fmt: skip
        tokens, chosen = list(prompt), []
        for _ in range(new_tokens):
            row = log_softmax(model, tokens)[-1]
            best = numpy.argsort(row)[-2:]
            gap = min(gap, float(row[best[1]] - row[best[0]]))
            tokens.append(int(best[1]))
            chosen.append(float(row[best[1]]))
        agree(log_softmax(model, tokens), reference, tokens, folder.name)
        greedy.append({"prompt": prompt, "tokens": tokens[len(prompt) :], "logprobs": _fixture.rounded(chosen)})
    return {"forward": forward, "greedy": greedy}, gap


def log_softmax(model, tokens: list[int]) -> numpy.ndarray:
    """mlx-lm's log-probabilities after each token, without a cache."""
    logits = numpy.array(model(mx.array([tokens]))[0].astype(mx.float32))
    return torch.log_softmax(torch.from_numpy(logits), -1).numpy()


def dequantized(folder: pathlib.Path):
    """transformers' model with the weights that the quantized folder stands for."""
    model, config = utils.load_model(folder)
    model.set_dtype(mx.float32)
    weights = {}
    for name, module in model.named_modules():
        for parameter, array in module.items():
            if not isinstance(array, mx.array) or parameter in ("scales", "biases"):
                continue
            if parameter == "weight" and hasattr(module, "scales"):
                array = mx.dequantize(
                    module.weight, module.scales, module.get("biases"), module.group_size, module.bits, module.mode,
                    dtype=mx.float32,
                )  # fmt: skip
            if "switch_mlp" in name:
                # mlx-lm stacks the experts that transformers names one by one.
                stem, part = name.split(".switch_mlp.")
                for index, expert in enumerate(array):
                    weights[f"{stem}.experts.{index}.{part}.{parameter}"] = torch.from_numpy(numpy.array(expert))
                continue
            weights[f"{name}.{parameter}"] = torch.from_numpy(numpy.array(array))
    stored = {"qwen3_5": of_qwen3_5, "gpt_oss": of_gpt_oss, "gemma4_text": of_gemma4}.get(config["model_type"])
    weights = weights if stored is None else stored(weights)
    plain = {key: value for key, value in config.items() if not key.startswith("quantization")}
    with tempfile.TemporaryDirectory() as plain_folder:
        _fixture.write_json(pathlib.Path(plain_folder) / "config.json", plain)
        safetensors.torch.save_file(weights, pathlib.Path(plain_folder) / "model.safetensors", {"format": "pt"})
        return _tiny.load(plain_folder)


def of_qwen3_5(weights: dict) -> dict:
    """Under transformers' names, with convolutions as torch has them and norms less 1."""

    def stored(name: str, it: torch.Tensor) -> torch.Tensor:
        if name.endswith("conv1d.weight"):
            return it.movedim(2, 1).contiguous()
        return it - 1 if "norm" in name and "linear_attn" not in name else it

    return {name.removeprefix("language_model."): stored(name, it) for name, it in weights.items()}


def of_gpt_oss(weights: dict) -> dict:
    """Under transformers' names: one tensor for all experts, inputs before outputs, gate and up row by row."""
    stored = {name: it for name, it in weights.items() if ".experts." not in name}
    for stem in {name.split(".experts.")[0] for name in weights if ".experts." in name}:
        for ending, kind in (("", "weight"), ("_bias", "bias")):
            gate, up, down = (weights[f"{stem}.experts.{part}_proj.{kind}"] for part in ("gate", "up", "down"))
            both = torch.stack([gate, up], 2).flatten(1, 2)
            both, down = (both.mT, down.mT) if kind == "weight" else (both, down)
            stored[f"{stem}.experts.gate_up_proj{ending}"] = both.contiguous()
            stored[f"{stem}.experts.down_proj{ending}"] = down.contiguous()
    return stored


def in_mlx_layout(folder: pathlib.Path) -> None:
    """Saves a tiny gpt-oss as mlx-lm does: of transformers' own files it reads those with packed experts only."""
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    for name in [it for it in weights if ".experts." in it]:
        stem, part = name.split(".experts.")
        kind = "bias" if part.endswith("_bias") else "weight"
        it = weights.pop(name)
        it = it if kind == "bias" else it.mT
        parts = {"gate": it[:, ::2], "up": it[:, 1::2]} if part.startswith("gate_up") else {"down": it}
        weights |= {f"{stem}.experts.{key}_proj.{kind}": part.contiguous() for key, part in parts.items()}
    safetensors.torch.save_file(weights, path, {"format": "pt"})


def of_gemma4(weights: dict) -> dict:
    """Under transformers' names: gate and up of all experts in one tensor."""
    stored = {name: it for name, it in weights.items() if ".switch_glu." not in name}
    for stem in {name.split(".switch_glu.")[0] for name in weights if ".switch_glu." in name}:
        gate, up, down = (weights[f"{stem}.switch_glu.{part}_proj.weight"] for part in ("gate", "up", "down"))
        stored[f"{stem}.gate_up_proj"] = torch.cat([gate, up], 1)
        stored[f"{stem}.down_proj"] = down
    return stored


def agree(logprobs: numpy.ndarray, reference, tokens: list[int], name: str) -> None:
    """mlx-lm must compute what transformers computes."""
    with torch.no_grad():
        theirs = torch.log_softmax(reference(torch.tensor([tokens])).logits[0].float(), -1).numpy()
    worst = float(numpy.abs(theirs - logprobs).max())
    assert worst < 2e-4, f"{name}: mlx-lm and transformers differ by {worst:.1e} over {len(tokens)} tokens"
