"""Part of the area `assisted`: a model's own heads for predicting further tokens (`use_mtp`).

The folders hold such heads in the two layouts that transformers reads: behind the layers, numbered on (GLM, DeepSeek),
and under `mtp.` (Mellum). Qwen's are in the second; transformers runs them once its config says what Mellum's does. It
takes no helper for a model that has states, so of such a one the text is said without, and how many passes it takes is
found by running the head over the whole text before each token.

Weights are drawn so that some of the heads' guesses stand: a block adds little to the stream, so a token's state is much
like its embedding, which the heads hand through.
"""

import json
import pathlib
import shutil

import numpy
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers.utils import logging

import _fixture
import _small
import _tiny
import models
from _cases import GREEDY, SAMPLE, settled, until_settled

NEW_TOKENS = 28
# What blocks add, and what heads make of a token's embedding beside handing it through.
DAMPED, NOISE = 0.2, 0.15

ROPE = {"rope_theta": 1000.0}
QWEN = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}}
HYBRID = "mtp-qwen3_5"
# Name, config, how many layers behind the model's own are heads, and where the file has them; `{}` is a head's number.
MODELS = (
    ("mtp-glm4-moe", _small.config(
        "Glm4MoeForCausalLM", "glm4_moe", num_hidden_layers=2, n_routed_experts=4, n_group=1, topk_group=1, n_shared_experts=1,
        first_k_dense_replace=1, routed_scaling_factor=1.4, use_qk_norm=True, attention_bias=True, partial_rotary_factor=0.5,
        tie_word_embeddings=False, **ROPE, **_small.MOE), 2),
    ("mtp-deepseek-v3", _small.config(
        "DeepseekV3ForCausalLM", "deepseek_v3", num_hidden_layers=2, tie_word_embeddings=False, n_routed_experts=4, n_group=2,
        topk_group=1, n_shared_experts=1, first_k_dense_replace=2, routed_scaling_factor=1.5, rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
            "mscale_all_dim": 1.0}, **_small.LATENT, **_small.MOE), 3),
    ("mtp-mellum", _small.config(
        "MellumForCausalLM", "mellum", num_hidden_layers=2, sliding_window=7, tie_word_embeddings=False, num_experts=4,
        layer_types=["sliding_attention", "full_attention"], mlp_layer_types=["dense", "sparse"], rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}, **_small.MOE), 1),
    ("mtp-qwen3_5-moe", _small.config(
        "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", num_hidden_layers=2, layer_types=["full_attention"] * 2, num_experts=4,
        shared_expert_intermediate_size=12, tie_word_embeddings=False, **QWEN, **_small.MOE), 1),
    ("mtp-qwen3_5", _small.config(
        "Qwen3_5ForCausalLM", "qwen3_5_text", num_hidden_layers=2, layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, linear_conv_kernel_dim=3,
        tie_word_embeddings=False, **QWEN), 1),
)  # fmt: skip
# Name, how long the prompt is, and the config given the ids of a plain run.
CASES = (
    ("mtp", 13, lambda said: GREEDY),
    ("mtp, a prompt of one token", 1, lambda said: GREEDY),
    ("mtp, penalties, end token", 11, lambda said: {
        **GREEDY, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "eos_token_id": [said[19]], "pad_token_id": 0}),
    ("mtp, drawn", 13, lambda said: {**SAMPLE, "top_k": 0}),
    ("mtp, drawn, warm", 9, lambda said: {**SAMPLE, "temperature": 1.5, "top_k": 20}),
    ("mtp, drawn, processors", 13, lambda said: {
        **SAMPLE, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1, "min_new_tokens": 12,
        "eos_token_id": [said[5], said[9]], "pad_token_id": 0}),
    ("mtp, with a say", 13, lambda said: {**GREEDY, "assistant_ensemble_weight": 0.5}),
    ("mtp, drawn, with a say", 13, lambda said: {**SAMPLE, "assistant_ensemble_weight": 0.6}),
    ("mtp, guidance", 13, lambda said: {**GREEDY, "guidance_scale": 1.4}),
)  # fmt: skip
# Those in which heads change nothing that is said.
PLAIN = ("mtp", "mtp, a prompt of one token", "mtp, penalties, end token")


def record(out: pathlib.Path, generate) -> None:
    """`generate(model, prompts, seed, config)` is what the area's other cases are calls of."""
    logging.disable_progress_bar()
    for name, config, heads in MODELS:
        build(out / name, config, heads)
        model = load(out / name)
        wanted = [it for it in CASES if name != HYBRID or it[0] in PLAIN]
        cases = [until_settled(f"{name}, {case[0]}", lambda attempt: try_case(
            model, generate, heads, [91, index, attempt], *case))
                 for index, case in enumerate(wanted)]  # fmt: skip
        passes, said = (sum(it[key] if key == "passes" else len(it["tokens"][0]) for it in cases) for key in ("passes", "tokens"))
        print(f"{name}: {said} tokens in {passes} passes", flush=True)
        recorded = {"made_by": _fixture.made_by("torch", "transformers"), "model": name, "assistant": name, "cases": cases}
        _fixture.write_json(out / f"{name}.json", recorded, lines_to=2)


def build(folder: pathlib.Path, config: dict, heads: int) -> None:
    """Writes the model's folder. Its last layers become the blocks of the heads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layers = config["num_hidden_layers"]
    whole = {**config, "num_hidden_layers": layers + heads}
    attention = "sliding_attention" if config["model_type"] == "mellum" else "full_attention"
    for key, kind in (("layer_types", attention), ("mlp_layer_types", "sparse")):
        if key in config:
            whole[key] = config[key] + [kind] * heads
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**whole), dtype=torch.float32)
    _small.draw(model, 5)
    # Qwen's norms multiply by (1 + w), but for the one behind a gate.
    less = 1.0 if "qwen" in config["model_type"] else 0.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(it in name for it in ("o_proj", "down_proj", "out_proj")):
                weight.mul_(DAMPED)
            if "norm" in name and "linear_attn" not in name:
                weight.sub_(less)
    model.to(torch.bfloat16).save_pretrained(folder)
    path, width = folder / "model.safetensors", config["hidden_size"]
    rng = numpy.random.default_rng(5)
    normal = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(numpy.float32))
    tensors = safetensors.torch.load_file(path)
    numbered = config["model_type"] in ("glm4_moe", "deepseek_v3")
    for head in range(heads):
        at, of = f"model.layers.{layers + head}.", f"mtp.layers.{head}."
        norms = ("enorm", "hnorm", "shared_head.norm") if numbered else ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
        if not numbered:
            tensors = {name.replace(at, of): it for name, it in tensors.items()}
            at = "mtp."
        through = torch.cat([torch.eye(width), torch.zeros(width, width)], 1)
        noise = normal(width, 2 * width) * NOISE / width**0.5
        tensors[f"{at}{'eh_proj' if numbered else 'fc'}.weight"] = (through + noise).to(torch.bfloat16)
        for norm in norms:
            tensors[f"{at}{norm}.weight"] = (1 - less + 0.2 * normal(width)).to(torch.bfloat16)
    if numbered:
        # What published files repeat of the model.
        at = f"model.layers.{layers}."
        tensors |= {f"{at}embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
                    f"{at}shared_head.head.weight": tensors["lm_head.weight"].clone()}  # fmt: skip
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    field = "mtp_num_hidden_layers" if less else "num_nextn_predict_layers"
    published = {**config, field: heads, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)


def load(folder: pathlib.Path):
    model = _tiny.load(folder)
    if "qwen" in model.config.model_type:
        model.config.num_mtp_layers, model.config.mtp_layer_types = 1, ["full_attention"]
        # By its class it has states.
        model._is_stateful = is_hybrid(model)
    elif model.config.model_type != "mellum":
        # transformers finds heads by the numbers of layers that published models have them at.
        layers = range(model.config.num_hidden_layers, 9)
        model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{layer}.*" for layer in layers]
    return model


def is_hybrid(model) -> bool:
    return "linear_attention" in (getattr(model.config, "layer_types", None) or [])


def try_case(model, generate, heads: int, draw: list[int], name: str, length: int, config_of) -> dict:
    rng = numpy.random.default_rng(draw)
    if length == 1 and heads > 1:
        # transformers takes back more than the heads hold there.
        length = heads + 2
    prompts = [rng.integers(3, model.config.vocab_size, length).tolist()]
    seed = int(rng.integers(0, 2**32))
    plain_of = GREEDY if not config_of([1] * 99)["do_sample"] else SAMPLE
    plain = generate(model, prompts, seed, {**plain_of, "max_new_tokens": NEW_TOKENS})
    config = {"max_new_tokens": NEW_TOKENS, "use_mtp": True, **config_of(plain["tokens"][0])}

    def run() -> dict:
        if is_hybrid(model):
            return counted(model, prompts[0], generate(model, prompts, seed, {**config, "use_mtp": False}))
        passes = []
        # Guidance has passes of its own, whose states nobody asks for.
        count = lambda _module, _inputs, asked, _output: passes.extend([1] * ("output_hidden_states" in asked))
        counting = model.register_forward_hook(count, with_kwargs=True)
        try:
            return {**generate(model, prompts, seed, config), "passes": len(passes)}
        finally:
            counting.remove()

    # The heads' guesses are shaken as the model's scores are.
    case = settled(run, rng, model.lm_head)
    if case["passes"] == len(case["tokens"][0]):
        raise models.TooClose("no guess that stands")
    if not config["do_sample"] and not {"assistant_ensemble_weight", "guidance_scale"} & config.keys():
        if generate(model, prompts, seed, {**config, "use_mtp": False})["tokens"] != case["tokens"]:
            raise models.TooClose("heads that change the tokens")
    return {
        "name": name, "config": config, "assistant": None, "negative_prompts": None,
        "seed": seed if config["do_sample"] else None, "prompts": prompts, **case,
    }  # fmt: skip


def counted(model, prompt: list[int], said: dict) -> dict:
    """What was said, and the passes it takes when a head guesses: one for the first token, then one for each token that
    follows a wrong guess, and for each two that follow a right one."""
    [tokens], mtp = said["tokens"], MtpModel.from_pretrained(model)
    have = passes = 1
    while have < len(tokens):
        text = torch.tensor([prompt + tokens[:have]])
        with torch.no_grad():
            states = model(text, output_hidden_states=True).hidden_states[-1]
            guess, *_ = mtp(
                text[:, 1:], states[:, :-1], None, torch.arange(1, text.shape[1])[None], MtpCache(config=model.config.get_mtp_config()))
        have, passes = have + 1 + (guess.item() == tokens[have]), passes + 1
    return {**said, "passes": passes}
