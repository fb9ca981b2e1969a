"""`mlxgk convert` beside `mlx_lm.convert`: the same bytes, and logits that mlx-lm computes from ours.

Usage: python _check_convert.py PATH-OF-MLXGK [NAME ...]

A dense and an expert model are converted in each mode, at each width and group size they allow, and by
each recipe; models of the families whose layout mlx-lm changes, in some of them, and back, multimodal
ones around them, too. Folders of other programs are converted and compared with mlx-lm's where that reads
them as they are meant, and with the weights that they stand for. Every folder of ours is loaded by mlx-lm.
Fails where a tensor or the config's quantization differs, or a logit by more than 1e-5. With names, only
those models are converted.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

import mlx.core as mx
import numpy
import safetensors.torch
import torch
import transformers
from mlx_lm import utils

import _fixture
import _foreign
import _mlx_convert
import _small  # noqa: F401  (makes Mistral 4 known to transformers by itself)
import _tiny
import convert

MODELS = pathlib.Path(__file__).parent.parent.parent / "fixtures" / "models"
PROMPT = [5, 17, 30, 2, 49, 44, 8, 60, 3]
TOLERANCE = 1e-5

# Sizes of the families' models: the recorded ones, wide enough for groups of 32.
WIDE = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "kv_lora_rank": 32, "q_lora_rank": 64,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "shared_intermediate_size": 64,
    "hidden_size_per_layer_input": 32, "mamba_d_head": 32, "shared_expert_intermediate_size": 64, "vocab_size": 128,
    "vocab_size_per_layer_input": 128, "block_ff_dim": 96, "mamba_d_ssm": 64, "intermediate_size_mlp": 96,
    "moe_shared_expert_intermediate_size": 64, "moe_latent_size": 32,
}  # fmt: skip

# What mlx-lm takes from a config in other words, or finds in it although transformers does not.
FIELDS = {
    "ernie4_5-moe": {"rope_theta": 500000.0},
    "falcon-h1": {"torch_dtype": "bfloat16"},
    "gemma3n": {"rope_local_base_freq": 100.0, "rope_theta": 1000.0},
    "gemma4-moe": {"global_head_dim": 16, "num_global_key_value_heads": 1, "tie_word_embeddings": True},
    "glm4-moe": {"rope_theta": 1000.0, "rope_scaling": None},
    "glm4-moe-lite": {"mlp_layer_types": ["dense", "sparse", "sparse"], "first_k_dense_replace": 1},
    # A dense layer's width is `shared_intermediate_size` in transformers.
    "granite-hybrid-dense": {"intermediate_size": 64, "layer_types": ["mamba", "attention", "mamba"]},
    "kimi-linear": {"head_dim": 4, "model_max_length": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    "lfm2": {"block_dim": 64, "conv_bias": False},
    "llama4": {"attention_bias": False, "rms_norm_eps": 1e-5, "rope_scaling": None, "use_qk_norm": True},
    # mlx-lm stacks experts where the first layer has some, and knows no other layers.
    "mellum": {"num_experts": 5, "mlp_layer_types": ["sparse"] * 3, "attention_bias": False},
    "minimax-m2": {"shared_intermediate_size": 0},
    "qwen3-next": {"torch_dtype": "bfloat16"},
}

# What mlx-lm calls a model that it knows by a multimodal one's name alone.
CALLED = {"qwen3_5_moe_text": "qwen3_5_moe", "qwen3_5_text": "qwen3_5"}

# What mlx-lm drops and we keep, because the model needs it.
KEPT = "e_score_correction_bias"

# DeepSeek's own layouts, which mlx-lm reads, too: experts one by one, fp8 in blocks of 128 and int4.
DEEPSEEK = {
    "deepseek-v3-fp8": (
        ".layers.",
        lambda at, weight: _foreign.fp8(at, weight, 128, 128),
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    ),
    "deepseek-v3-int4": (
        # As Kimi K2 has it; what mlx-lm would do to a packed kv_b_proj, it does to ours as it reads it.
        ".mlp.",
        lambda at, weight: _foreign.compressed(at, weight, 32),
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ),
}

FAMILIES = [
    "deepseek-v2", "deepseek-v3", "ernie4_5-moe", "falcon-h1", "gemma3n", "gemma4", "gemma4-moe", "glm4-moe",
    "glm4-moe-lite", "gpt-oss-mxfp4", "granite-hybrid", "granite-hybrid-dense", "kimi-linear", "laguna", "lfm2",
    "lfm2-moe", "llama4", "mellum", "minimax-m2", "mistral4", "mixtral", "muse-glimmer", "nemotron-h", "qwen3_5",
    "qwen3-next",
]  # fmt: skip
WRAPPERS = {"gemma3n": "gemma3n", "gemma4-moe": "gemma4", "gemma4": "gemma4", "llama4": "llama4", "mistral4": "mistral3"}

# mlx-lm does not know the text models of these by themselves.
ONLY_WRAPPED = ["gemma3n", "llama4"]

# These are published with the text model under `language_model.`, which transformers 5 has within `model.`.
PUBLISHED = ["llama4"]

# In MLX's layout only.
ONE_WAY = ["gpt-oss-mxfp4", "llama4"]


def steps() -> list[dict]:
    affine = [{"bits": bits, "group-size": group} for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
    modes = [{"mode": mode} for mode in ("mxfp4", "mxfp8", "nvfp4")]
    recipes = [
        {"recipe": recipe, "group-size": group}
        for recipe in ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
        for group in (32, 64)
    ]
    return [{}, {"dtype": "float16"}, {"dtype": "float32", "bits": 4}, *affine, *modes, *recipes]


def family_steps(name: str) -> list[dict]:
    if name == "gpt-oss-mxfp4":
        # Its router is too narrow for groups of 64, at which mlx-lm fails.
        return [{}]
    # lfm2's layers have no down_proj, by which recipes tell them.
    recipe = [] if name == "lfm2" else [{"recipe": "mixed_3_6", "group-size": 32}]
    return [{}, {"bits": 4, "group-size": 32}, {"mode": "mxfp4"}, {"bits": 8, "group-size": 64}, *recipe]


def logits(folder: pathlib.Path) -> numpy.ndarray:
    """What mlx-lm computes in fp32: MLX has no experts in half precision on a CPU."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    return numpy.array(model(mx.array([PROMPT]))[0].astype(mx.float32))


def random(kind: type, config: dict) -> transformers.PreTrainedModel:
    """A model of random weights."""
    config = transformers.AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    model = kind.from_config(config).to(torch.bfloat16)
    for tensor in model.parameters():
        tensor.data = torch.randn_like(tensor) * 0.05
    return model


def rename(folder: pathlib.Path, new: Callable[[str], str]) -> None:
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({new(key): it for key, it in stored.items()}, folder / "model.safetensors", {"format": "pt"})


def with_shared_keys(folder: pathlib.Path, text: dict) -> None:
    """Adds what published files have and transformers leaves out: keys and values of layers that share those of
    others."""
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    for layer in range(text["num_hidden_layers"] - text["num_kv_shared_layers"], text["num_hidden_layers"]):
        for part in ("k_proj", "v_proj", "k_norm"):
            like = stored[f"model.layers.0.self_attn.{part}.weight"]
            stored[f"model.layers.{layer}.self_attn.{part}.weight"] = torch.randn_like(like)
    safetensors.torch.save_file(stored, folder / "model.safetensors", {"format": "pt"})


def wide(name: str, folder: pathlib.Path) -> None:
    """A model like the recorded one, with random weights, as transformers writes it."""
    recorded = _fixture.read_json(MODELS / name / "config.json")
    text = recorded.get("text_config", recorded)
    if name == "gpt-oss-mxfp4":
        shutil.copytree(MODELS / name, folder)
        return
    sizes = {key: size for key, size in WIDE.items() if text.get(key)}
    if "mamba_n_heads" in text:
        inner = sizes.get("mamba_d_ssm") or text["mamba_expand"] * sizes["hidden_size"]
        sizes["mamba_n_heads"] = inner // sizes["mamba_d_head"]
    if name == "mixtral":
        # mlx-lm's has no other heads than these.
        sizes["head_dim"] = sizes["hidden_size"] // text["num_attention_heads"]
    text = {**text, **sizes, **FIELDS.get(name, {})}
    for field in ("qk_head_dim", "time_step_limit"):
        text.pop(field, None)
    if "partial_rotary_factor" in text.get("rope_parameters", {}) and "qk_rope_head_dim" in text:
        # The part of a head that is rotated, with these sizes.
        part = text["qk_rope_head_dim"] / (text["qk_nope_head_dim"] + text["qk_rope_head_dim"])
        text["rope_parameters"] = {**text["rope_parameters"], "partial_rotary_factor": part}
    torch.manual_seed(1)
    if name == "muse-glimmer":
        # transformers has it as a whole only.
        text["dtype"] = "bfloat16"
        whole = {**recorded, "text_config": text, "out_hidden_size": text["hidden_size"]}
        random(transformers.AutoModelForImageTextToText, whole).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(whole))
        # Where mlx-lm looks for what it drops.
        rename(folder, lambda key: key.removeprefix("model.") if key.startswith("model.vision_") else key)
        return
    model = random(transformers.AutoModelForCausalLM, text)
    config = model.config
    model.save_pretrained(folder)
    # What transformers leaves out of a config because it is the default, mlx-lm may take otherwise.
    text = {**config.to_dict(), **text}
    if name == "gemma3n":
        with_shared_keys(folder, text)
    if name == "kimi-linear":
        rename(folder, lambda key: re.sub(r"\.block_sparse_moe\.((gate|up|down)_proj)", r".mlp.\1", key))
    if recorded is not text and "text_config" in recorded:
        rename(folder, lambda key: key.replace("model.", "model.language_model.", 1))
        text = {**recorded, "text_config": text}
    (folder / "config.json").write_text(json.dumps(text, default=str))


def relay(source: pathlib.Path, folder: pathlib.Path, part: str, layout: Callable, settings: dict) -> None:
    """The same with products in the layout of another program, where their names have this part."""
    shutil.copytree(source, folder)
    stored = {}
    for key, weight in safetensors.torch.load_file(source / "model.safetensors").items():
        if part in key and key.endswith("_proj.weight"):
            stored |= layout(key.removesuffix(".weight"), weight.float().numpy())[0]
        else:
            stored[key] = weight
    safetensors.torch.save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = _fixture.read_json(source / "config.json")
    _fixture.write_json(folder / "config.json", {**config, "quantization_config": settings})


def wrapped(source: pathlib.Path, folder: pathlib.Path, model_type: str) -> None:
    """The same as the text model of a multimodal one."""
    shutil.copytree(source, folder)
    stored = safetensors.torch.load_file(source / "model.safetensors")
    if model_type in PUBLISHED:
        stored = {f"language_model.{key}": it for key, it in stored.items()}
        stored["vision_model.patch.weight"] = torch.zeros(2, 3)
    else:
        stored = {key.replace("model.", "model.language_model.", 1): it for key, it in stored.items()}
        stored["model.vision_tower.patch.weight"] = torch.zeros(2, 3)
    safetensors.torch.save_file(stored, folder / "model.safetensors", {"format": "pt"})
    text = _fixture.read_json(source / "config.json")
    tied = text.get("tie_word_embeddings", True)
    _fixture.write_json(folder / "config.json", {
        "model_type": model_type, "vocab_size": text["vocab_size"], "tie_word_embeddings": tied, "text_config": text,
    })  # fmt: skip


class Check:
    def __init__(self, mlxgk: str, work: pathlib.Path):
        self.mlxgk, self.work = mlxgk, work
        self.compared, self.furthest = 0, 0.0

    def convert(self, source: pathlib.Path, out: pathlib.Path, *flags: str) -> None:
        subprocess.run([self.mlxgk, "convert", source, "--out", out, *flags], check=True, stdout=subprocess.DEVNULL)

    def beside(self, name: str, source: pathlib.Path, all_steps: list[dict]) -> pathlib.Path:
        """Converts in both ways and compares. Returns our folder of the first step."""
        theirs_source = self.work / f"{name}-theirs-source"
        shutil.copytree(source, theirs_source)
        config = _fixture.read_json(source / "config.json")
        called = CALLED.get(config["model_type"], config["model_type"])
        (theirs_source / "config.json").write_text(json.dumps({**config, "model_type": called}))
        for index, step in enumerate(all_steps):
            ours, theirs = self.work / f"{name}-{index}-ours", self.work / f"{name}-{index}-theirs"
            _mlx_convert.convert(theirs_source, theirs, step)
            flags = _mlx_convert.flags(step)
            self.convert(source, ours, *flags)
            about = f"{name} {' '.join(flags)}"
            mine, expected = (convert.tensors(it / "model.safetensors") for it in (ours, theirs))
            mine = {key: it for key, it in mine.items() if key in expected or KEPT not in key}
            for key in sorted(mine.keys() | expected.keys()):
                if mine.get(key) != expected.get(key):
                    sys.exit(f"{about}: {key} differs: {mine.get(key)} and {expected.get(key)}")
            configs = [_fixture.read_json(it / "config.json") for it in (ours, theirs)]
            # What mlx-lm undoes of fp8 it still calls so.
            if "quant_method" in configs[1].get("quantization_config", {}):
                del configs[1]["quantization_config"]
            for key in ("quantization", "quantization_config", "model_type"):
                if configs[0].get(key) != configs[1].get(key):
                    sys.exit(f"{about}: {key} differs: {configs[0].get(key)} and {configs[1].get(key)}")
            difference = float(numpy.abs(logits(ours) - logits(theirs)).max())
            self.furthest = max(self.furthest, difference)
            if not difference <= TOLERANCE:
                sys.exit(f"{about}: the logits differ by {difference}")
            self.compared += 1
        return self.work / f"{name}-0-ours"

    def foreign(self, name: str, source: pathlib.Path) -> None:
        """Converts a folder in another program's layout, and compares with the weights that it stands for."""
        stored, undone = self.work / name, self.work / f"{name}-undone"
        _foreign.convert(source, stored, undone, name)
        if name == "llama-awq":
            # The only one of them that mlx-lm reads as it is meant.
            self.beside(name, stored, [{}, {"dequantize": True}])
        made, floats = self.work / f"{name}-made", self.work / f"{name}-floats"
        # Their scales are float16, which mlx-lm would turn into the dtype that the config names.
        half = ["--dtype", "float16"] if name.startswith(("llama-awq", "llama-gptq")) else []
        self.convert(stored, made, *half)
        packed = "quantization" in _fixture.read_json(made / "config.json")
        self.convert(made, floats, "--dtype", "float32", *(["--dequantize"] if packed else []))
        there, expected = (safetensors.torch.load_file(it / "model.safetensors") for it in (floats, undone))
        if there.keys() != expected.keys():
            sys.exit(f"{name}: {there.keys() ^ expected.keys()} differ")
        for key, tensor in there.items():
            # Packed weights have their biases in half precision: at most 255 steps, half a unit of the last place off.
            least = expected[key].abs().max() * 2**-10 if packed else 0
            if not torch.allclose(tensor, expected[key], rtol=0, atol=float(least)):
                sys.exit(f"{name}: {key} is not what its layout says")
        if not numpy.isfinite(logits(made)).all():
            sys.exit(f"{name}: the logits are not finite")
        self.compared += 1

    def both(self, name: str, source: pathlib.Path, all_steps: list[dict]) -> None:
        """Converts and compares, and there and back."""
        ours = self.beside(name, source, all_steps)
        if name.split()[0] not in ONE_WAY:
            self.back(name, source, ours)

    def back(self, name: str, source: pathlib.Path, ours: pathlib.Path) -> None:
        """Converts our folder back and compares with the source."""
        out = self.work / f"{name}-back"
        self.convert(ours, out, "--to", "hf")
        there = safetensors.torch.load_file(out / "model.safetensors")
        before = safetensors.torch.load_file(source / "model.safetensors")
        for key, tensor in there.items():
            same = key in before and torch.equal(tensor, before[key])
            # A norm's 1 + w is rounded, and a product with one of Falcon-H1's factors.
            rounded = key in before and (
                (key.endswith("norm.weight") and torch.allclose(tensor, before[key], atol=2**-8))
                or (name == "falcon-h1" and torch.allclose(tensor, before[key], rtol=2**-7, atol=0))
            )
            if not same and not rounded:
                sys.exit(f"{name}: {key} is not what it was before it was converted there and back")
        left_out = [key for key in before if key not in there]
        allowed = ("visual", "vision", "mtp", ".k_proj", ".v_proj", ".k_norm", "lm_head")
        if any(not any(part in key for part in allowed) for key in left_out):
            sys.exit(f"{name}: {left_out} is gone after it was converted there and back")
        config = _fixture.read_json(out / "config.json")["model_type"]
        if config != _fixture.read_json(source / "config.json")["model_type"]:
            sys.exit(f"{name}: model_type has become {config}")


def main() -> None:
    mlxgk, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as work:
        check = Check(mlxgk, pathlib.Path(work))
        # Sources without a quantization, and wide enough for groups of 64.
        for name in ("llama-q4", "qwen3-moe-q4"):
            if not names or name in names:
                source = check.work / name
                _mlx_convert.convert(MODELS / name, source, {"dequantize": True})
                check.beside(name, source, steps())
        for name in FAMILIES:
            if names and name not in names:
                continue
            source = check.work / name
            wide(name, source)
            if name not in ONLY_WRAPPED:
                check.both(name, source, family_steps(name))
            if name in WRAPPERS:
                inside = check.work / f"{name}-wrapped"
                wrapped(source, inside, WRAPPERS[name])
                check.both(f"{name} wrapped", inside, family_steps(name))
            print(f"{name}: the same", file=sys.stderr, flush=True)
        for tiny in _tiny.FOREIGN_SOURCES:
            if not names or tiny.name in names:
                source = check.work / f"{tiny.name}-source"
                _tiny.build(tiny, source, 1)
                check.foreign(tiny.name, source)
                print(f"{tiny.name}: the same", file=sys.stderr, flush=True)
        for name, layout in DEEPSEEK.items():
            if not names or name in names:
                deepseek = check.work / f"{name}-source"
                wide("deepseek-v3", deepseek)
                source = check.work / name
                relay(deepseek, source, *layout)
                check.beside(name, source, family_steps(name) if name == "deepseek-v3-fp8" else [{}, {"dequantize": True}])
                print(f"{name}: the same", file=sys.stderr, flush=True)
        if check.compared == 0:
            sys.exit(f"no model is called so: {names}")
        print(f"{check.compared} conversions: the same bytes as mlx-lm's, logits at most {check.furthest} apart")


if __name__ == "__main__":
    main()
