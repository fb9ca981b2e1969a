"""The tiny random models: what each one is there to show, and how its weights are drawn.

A config is written here the way a published folder writes it. Those marked `form="4.x"` keep that
spelling on disk (`rope_theta`, `rope_scaling`, `torch_dtype`, fields left to their defaults); for
the others transformers 5 rewrites `config.json` (`rope_parameters`, `layer_types`, every default).
`matters` names config changes that must move the log-probabilities: a fixture whose window or
scaling could be ignored without notice would prove nothing.
"""

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable

import numpy
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForCausalLM


@dataclasses.dataclass(frozen=True)
class Tiny:
    """One tiny model: its config as published, how it is stored, and what must matter in it."""

    name: str
    config: dict
    form: str = "5.x"
    dtype: str = "float32"
    shard_bytes: int | None = None
    generation: dict | None = None
    matters: tuple[dict, ...] = ()
    lengths: tuple[int, ...] = (1, 13, 37)
    batch: tuple[int, ...] = (5, 37, 13, 1)
    mixed_batch: tuple[int, ...] | None = None
    # One more prompt for a forward pass alone: small errors in the rotary angles grow with position.
    long_prompt: tuple[int, ...] = ()
    # The first seed to try; `models.py` moves on while a tie or a flat attention shows.
    seed: int = 0
    # What fills the weights, given the model and a seed; `draw` below where there is none.
    draw: Callable[[torch.nn.Module, int], None] | None = None

    @property
    def family(self) -> str:
        return self.config["model_type"]

    @property
    def vocab_size(self) -> int:
        return self.config.get("text_config", self.config)["vocab_size"]


def common(architecture: str, model_type: str, **fields) -> dict:
    """Fields every config has. No special ids: each case names the ones it means."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **fields,
    }


def llama(**fields) -> dict:
    return common("LlamaForCausalLM", "llama", hidden_act="silu", rms_norm_eps=1e-5, **fields)


def mistral(**fields) -> dict:
    return common("MistralForCausalLM", "mistral", hidden_act="silu", rms_norm_eps=1e-5, **fields)


def qwen2(**fields) -> dict:
    return common("Qwen2ForCausalLM", "qwen2", hidden_act="silu", rms_norm_eps=1e-6, **fields)


def qwen3(**fields) -> dict:
    return common("Qwen3ForCausalLM", "qwen3", hidden_act="silu", rms_norm_eps=1e-6, **fields)


def qwen3_moe(**fields) -> dict:
    return common(
        "Qwen3MoeForCausalLM", "qwen3_moe", hidden_act="silu", rms_norm_eps=1e-6,
        **{"moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2, **fields},
    )  # fmt: skip


def gemma(**fields) -> dict:
    return common("GemmaForCausalLM", "gemma", rms_norm_eps=1e-6, **fields)


def gemma2(**fields) -> dict:
    return common("Gemma2ForCausalLM", "gemma2", hidden_activation="gelu_pytorch_tanh", **fields)


def gemma3(**fields) -> dict:
    return common("Gemma3ForCausalLM", "gemma3_text", hidden_activation="gelu_pytorch_tanh", **fields)


def phi3(**fields) -> dict:
    return common("Phi3ForCausalLM", "phi3", hidden_act="silu", rms_norm_eps=1e-5, **fields)


def qwen3_5(architecture: str = "Qwen3_5ForCausalLM", model_type: str = "qwen3_5_text", **fields) -> dict:
    return common(
        architecture, model_type, hidden_act="silu", rms_norm_eps=1e-6,
        **{"num_hidden_layers": 4, "full_attention_interval": 3, "head_dim": 16, "num_key_value_heads": 2,
           "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
           "linear_conv_kernel_dim": 4, "max_position_embeddings": 2048, **fields},
    )  # fmt: skip


def multimodal(text: dict, model_type: str, **fields) -> dict:
    """The config as a multimodal model's folder has it, around that of its language model."""
    return {"architectures": [f"{text['architectures'][0].removesuffix('CausalLM')}ConditionalGeneration"],
            "model_type": model_type, "text_config": text, "vision_config": {}, **fields}  # fmt: skip


def qwen3_5_moe(**fields) -> dict:
    return qwen3_5(
        "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", moe_intermediate_size=16, shared_expert_intermediate_size=20,
        **{"num_experts": 5, "num_experts_per_tok": 2, **fields},
    )  # fmt: skip


def qwen3_next(**fields) -> dict:
    return qwen3_5(
        "Qwen3NextForCausalLM", "qwen3_next", moe_intermediate_size=16, shared_expert_intermediate_size=12,
        **{"num_experts": 5, "num_experts_per_tok": 3, "mlp_only_layers": [], "decoder_sparse_step": 1, **fields},
    )  # fmt: skip


LONGROPE_SHORT = [1.0, 1.1, 1.3, 1.6]
LONGROPE_LONG = [1.0, 2.5, 4.0, 6.5]

MODELS = (
    # Llama: plain, then each RoPE scaling.
    Tiny("llama", llama(vocab_size=151, num_key_value_heads=2, max_position_embeddings=2048,
                        rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
         matters=({"rope_theta": 10000.0},), long_prompt=(1200,), seed=2),
    Tiny("llama-llama3", llama(
            vocab_size=160, num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True, rope_theta=1000.0,
            rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 32}),
         form="4.x", dtype="bfloat16", matters=({"rope_scaling": None},)),
    Tiny("llama-llama3-5x", llama(
            vocab_size=133, num_key_value_heads=4, rope_parameters={
                "rope_type": "llama3", "rope_theta": 300.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 3.0, "original_max_position_embeddings": 64}),
         dtype="float16", matters=({"rope_type": "default"},), seed=1),
    Tiny("llama-linear", llama(vocab_size=140, head_dim=12, mlp_bias=True, rope_scaling={"type": "linear", "factor": 3.0}),
         form="4.x", dtype="float16", matters=({"rope_scaling": None},)),
    Tiny("llama-yarn", llama(
            vocab_size=137, num_key_value_heads=2, rope_parameters={
                "rope_type": "yarn", "rope_theta": 2000.0, "factor": 4.0, "original_max_position_embeddings": 32,
                "beta_fast": 4.0, "beta_slow": 1.0}),
         dtype="bfloat16", shard_bytes=30_000, matters=({"rope_type": "default"},)),
    Tiny("llama-yarn-untruncated", llama(
            vocab_size=129, num_key_value_heads=2, head_dim=20, rope_theta=1000.0,
            rope_scaling={"type": "yarn", "factor": 3.0, "original_max_position_embeddings": 48, "beta_fast": 6,
                          "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False}),
         form="4.x", dtype="bfloat16", matters=({"rope_scaling": None},)),
    # Mistral: a window shorter than the prompts, and none.
    Tiny("mistral", mistral(vocab_size=163, num_key_value_heads=2, sliding_window=9, rope_theta=10000.0),
         form="4.x", dtype="bfloat16", shard_bytes=25_000, matters=({"sliding_window": None},)),
    Tiny("mistral-full", mistral(
            vocab_size=130, num_attention_heads=2, num_key_value_heads=1, head_dim=20, sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0}),
         dtype="bfloat16", matters=({"sliding_window": 9},), seed=3),
    # Qwen2: biases on q, k and v; the windowed upper layers.
    Tiny("qwen2", qwen2(
            vocab_size=171, num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1000000.0,
            sliding_window=8, max_window_layers=1, use_sliding_window=False),
         form="4.x", dtype="float16", matters=({"use_sliding_window": True},), seed=1),
    Tiny("qwen2-sliding", qwen2(
            vocab_size=132, num_attention_heads=4, num_key_value_heads=1, use_sliding_window=True, sliding_window=8,
            max_window_layers=1, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
         dtype="bfloat16", matters=({"use_sliding_window": False}, {"max_window_layers": 0}), seed=6),
    # Qwen3: q/k norm and heads wider than hidden / heads.
    Tiny("qwen3", qwen3(
            vocab_size=181, num_key_value_heads=2, head_dim=24, tie_word_embeddings=True, max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
         dtype="bfloat16", generation={"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95}, long_prompt=(1200,),
         seed=3),
    Tiny("qwen3-4x", qwen3(
            vocab_size=139, num_attention_heads=2, num_key_value_heads=2, head_dim=12, attention_bias=True,
            rope_theta=5000.0, rope_scaling=None, use_sliding_window=True, sliding_window=7, max_window_layers=2),
         form="4.x", dtype="float32", matters=({"use_sliding_window": False},)),
    # Qwen3-MoE: with and without renormalised routing, dense layers among the sparse ones.
    Tiny("qwen3-moe", qwen3_moe(
            vocab_size=149, num_key_value_heads=2, head_dim=12, norm_topk_prob=True, decoder_sparse_step=1,
            tie_word_embeddings=False, mlp_only_layers=[1], rope_theta=10000.0, rope_scaling=None),
         form="4.x", dtype="bfloat16", matters=({"norm_topk_prob": False}, {"num_experts_per_tok": 1}), seed=4),
    Tiny("qwen3-moe-5x", qwen3_moe(
            vocab_size=135, num_key_value_heads=4, num_hidden_layers=4, norm_topk_prob=False, decoder_sparse_step=2,
            num_experts=5, num_experts_per_tok=3, use_sliding_window=True, sliding_window=10, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
         dtype="float16", matters=({"norm_topk_prob": True}, {"use_sliding_window": False}), seed=1),
    # Gemma: one key/value head, scaled embeddings, (1 + w) norms. Published configs say "gelu" and mean its tanh form.
    Tiny("gemma", gemma(vocab_size=157, num_key_value_heads=1, head_dim=16, hidden_act="gelu", hidden_activation=None, rope_theta=10000.0),
         form="4.x", dtype="bfloat16", matters=({"rope_theta": 100.0},)),
    Tiny("gemma-5x", gemma(
            vocab_size=131, num_key_value_heads=4, head_dim=8, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=False,
            attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 200.0}),
         dtype="float16"),
    # Gemma 2: both soft caps tight enough to bend, alternating windows.
    Tiny("gemma2", gemma2(
            vocab_size=155, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=20, sliding_window=7,
            attn_logit_softcapping=3.0, final_logit_softcapping=14.0, rope_theta=10000.0, num_hidden_layers=4),
         form="4.x", dtype="bfloat16",
         matters=({"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"sliding_window": 100},
                  {"query_pre_attn_scalar": 12})),
    Tiny("gemma2-5x", gemma2(
            vocab_size=134, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=6,
            attn_logit_softcapping=None, final_logit_softcapping=20.0,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
         dtype="float16", matters=({"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},), seed=4),
    # Gemma 3: local and global RoPE, of which only the global one is scaled.
    Tiny("gemma3", gemma3(
            vocab_size=161, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=16, sliding_window=8,
            sliding_window_pattern=3, num_hidden_layers=4, max_position_embeddings=2048, rope_theta=100000.0, rope_local_base_freq=100.0,
            rope_scaling={"rope_type": "linear", "factor": 4.0}),
         form="4.x", dtype="bfloat16", generation={"do_sample": True, "top_k": 64, "top_p": 0.95}, long_prompt=(1200,),
         matters=({"rope_scaling": None}, {"rope_local_base_freq": 10000.0}, {"sliding_window_pattern": 2},
                  {"sliding_window": 100})),
    Tiny("gemma3-5x", gemma3(
            vocab_size=136, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=6,
            final_logit_softcapping=16.0, tie_word_embeddings=False,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"full_attention": {"rope_type": "yarn", "rope_theta": 3000.0, "factor": 4.0,
                                                "original_max_position_embeddings": 32, "beta_fast": 4.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}),
         dtype="float16", matters=({"final_logit_softcapping": None}, {"sliding_window": 100}), seed=1),
    # Phi-3: fused projections; part of each head rotated; longrope with its switch inside the test lengths.
    Tiny("phi3", phi3(
            vocab_size=153, num_key_value_heads=2, partial_rotary_factor=0.5, original_max_position_embeddings=128,
            rope_theta=10000.0, rope_scaling=None, sliding_window=11),
         form="4.x", dtype="bfloat16", matters=({"partial_rotary_factor": 1.0}, {"sliding_window": None})),
    Tiny("phi3-longrope", phi3(
            vocab_size=141, num_key_value_heads=4, original_max_position_embeddings=24, rope_theta=10000.0,
            sliding_window=None, rope_scaling={"type": "longrope", "short_factor": LONGROPE_SHORT, "long_factor": LONGROPE_LONG}),
         form="4.x", dtype="bfloat16", lengths=(1, 13, 24, 25, 37), batch=(26, 37, 30), mixed_batch=(5, 13, 9),
         matters=({"rope_scaling": None}, {"original_max_position_embeddings": 100}), seed=1),
    Tiny("phi3-longrope-5x", phi3(
            vocab_size=138, num_key_value_heads=2, tie_word_embeddings=True, original_max_position_embeddings=20,
            rope_parameters={"rope_type": "longrope", "rope_theta": 5000.0, "partial_rotary_factor": 0.75, "factor": 3.0,
                             "attention_factor": 1.25, "short_factor": [1.0, 1.2, 1.4], "long_factor": [1.5, 3.0, 7.0]}),
         dtype="float16", lengths=(1, 13, 20, 21, 37), batch=(26, 37, 30), mixed_batch=(5, 13, 9), seed=3),
    # Qwen3.5: gated delta rules beside gated attention, a prompt of several chunks, of which the last is not full.
    Tiny("qwen3_5", multimodal(qwen3_5(
            vocab_size=152, tie_word_embeddings=False, rope_parameters={
                "rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5, "mrope_interleaved": True,
                "mrope_section": [2, 1, 1]}), "qwen3_5"),
         form="4.x", dtype="bfloat16", matters=({"partial_rotary_factor": 0.25},), long_prompt=(150,), seed=1),
    # Its mixture, with fused experts, and a tied head.
    Tiny("qwen3_5-moe", qwen3_5_moe(
            vocab_size=143, tie_word_embeddings=True, layer_types=["full_attention", "linear_attention", "linear_attention"],
            num_hidden_layers=3, linear_num_value_heads=2, linear_conv_kernel_dim=3,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0}),
         dtype="bfloat16", matters=({"num_experts_per_tok": 1},), long_prompt=(70,), seed=14),
    # Qwen3-Next: fused inputs in order of key heads, experts one by one, a dense layer among the sparse ones.
    Tiny("qwen3-next", qwen3_next(
            vocab_size=147, tie_word_embeddings=True, linear_num_key_heads=3, linear_num_value_heads=6, norm_topk_prob=False,
            num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1, 2], rope_theta=1000.0, partial_rotary_factor=0.25, attention_bias=True),
         form="4.x", dtype="float16", matters=({"norm_topk_prob": True}, {"num_experts_per_tok": 1}), seed=5),
)  # fmt: skip


# These are converted by mlx-lm, whose kernels want input widths that a group divides. They say
# whether the head is tied: mlx-lm ties by default what transformers does not.
QUANTIZED_SOURCES = (
    Tiny("llama-q4", llama(vocab_size=144, tie_word_embeddings=False, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_key_value_heads=2,
                           rope_theta=10000.0), form="4.x", dtype="float32", seed=2),
    Tiny("qwen3-q8", qwen3(vocab_size=150, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_key_value_heads=2,
                           head_dim=32, tie_word_embeddings=True, rope_theta=10000.0), form="4.x", dtype="bfloat16"),
    Tiny("qwen2-mixed", qwen2(vocab_size=145, tie_word_embeddings=False, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_key_value_heads=4,
                              rope_theta=10000.0), form="4.x", dtype="float16"),
    Tiny("qwen3-moe-q4", qwen3_moe(vocab_size=148, tie_word_embeddings=False, hidden_size=64, intermediate_size=64, moe_intermediate_size=32,
                                   num_hidden_layers=2, num_experts=4, num_key_value_heads=2, head_dim=16,
                                   mlp_only_layers=[], decoder_sparse_step=1, norm_topk_prob=True,
                                   rope_theta=10000.0), form="4.x", dtype="bfloat16", seed=1),
    Tiny("qwen3_5-q4", multimodal(qwen3_5(vocab_size=142, tie_word_embeddings=True, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
                                          linear_key_head_dim=16, linear_value_head_dim=16,
                                          rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.25}),
                                  "qwen3_5"), form="4.x", dtype="bfloat16", seed=1),
    Tiny("gemma3-q4", gemma3(vocab_size=146, hidden_size=64, intermediate_size=64, num_key_value_heads=1, head_dim=32,
                             query_pre_attn_scalar=32, sliding_window=16, sliding_window_pattern=3, rope_theta=100000.0,
                             rope_local_base_freq=1000.0), form="4.x", dtype="bfloat16", seed=1),
    Tiny("llama-mxfp4", llama(vocab_size=112, tie_word_embeddings=False, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                              num_key_value_heads=2, rope_theta=10000.0), form="4.x", dtype="bfloat16"),
    Tiny("qwen3-mxfp8", qwen3(vocab_size=114, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_key_value_heads=1,
                              head_dim=16, tie_word_embeddings=True, rope_theta=10000.0), form="4.x", dtype="bfloat16"),
    Tiny("qwen2-nvfp4", qwen2(vocab_size=113, tie_word_embeddings=True, hidden_size=64, intermediate_size=80, num_hidden_layers=2,
                              num_key_value_heads=2, rope_theta=10000.0), form="4.x", dtype="float16"),
    *(Tiny(name, qwen3_moe(vocab_size=115, tie_word_embeddings=False, hidden_size=64, intermediate_size=64, moe_intermediate_size=32,
                           num_hidden_layers=2, num_experts=4, num_key_value_heads=1, head_dim=16, mlp_only_layers=[],
                           decoder_sparse_step=1, norm_topk_prob=True, rope_theta=10000.0), form="4.x", dtype="bfloat16")
      for name in ("qwen3-moe-mxfp4", "qwen3-moe-mxfp8", "qwen3-moe-nvfp4")),
)  # fmt: skip

# These are written in the layouts of other quantizers (`_foreign.py`).
FOREIGN_SOURCES = tuple(
    Tiny(name, llama(vocab_size=117, tie_word_embeddings=False, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                     num_key_value_heads=2, rope_theta=10000.0), form="4.x", dtype="bfloat16")
    for name in ("llama-awq", "llama-compressed", "llama-fp8", "llama-gptq", "llama-gptq-8bit", "llama-modelopt-fp8",
                 "llama-modelopt-nvfp4")
)  # fmt: skip


def draw(model: torch.nn.Module, seed: int) -> None:
    """Fills every weight so that logits spread widely and attention is neither flat nor stuck.

    numpy's generator draws, because torch's normal numbers differ between processors.
    """
    config = model.config
    hidden, rng = config.hidden_size, numpy.random.default_rng(seed)
    # norms multiply by (1 + w)
    shifted = config.model_type.startswith(("gemma", "qwen3_5", "qwen3_next"))
    gemma = config.model_type.startswith("gemma")
    sandwich = config.model_type in ("gemma2", "gemma3_text")  # norms after each half of a block too
    tied = config.tie_word_embeddings

    def normal(shape, std: float):
        return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(numpy.float32)) * std

    def scale_of(name: str, weight: torch.Tensor) -> tuple[float, float]:
        """Mean and standard deviation for one parameter."""
        if name.endswith("bias"):
            return 0.0, 0.3
        if "A_log" in name:
            # Some heads forget within a few tokens, and some remember dozens.
            return -1.5, 1.2
        if "linear_attn.norm" in name:
            return 1.0, 0.2
        if "norm" in name:
            mean = 1.0
            if "q_norm" in name or "k_norm" in name:
                mean = 1.5
            elif sandwich and ("post_attention" in name or "post_feedforward" in name):
                mean = 3.5
            elif gemma and tied and name == "model.norm.weight":
                mean = 2.0
            return mean - (1.0 if shifted else 0.0), 0.2
        fan_in = math.sqrt(weight.shape[-1])
        if "embed_tokens" in name:
            # A tied table is the head too, and Gemma scales it up on the way in.
            spread = (2.0 if gemma else 4.0) if tied else 1.0
            return 0.0, spread / math.sqrt(hidden) if gemma or tied else 1.0
        gains = {
            "lm_head": 4.0, "q_proj": 1.5, "k_proj": 1.5, "v_proj": 1.3, "qkv_proj": 1.5, "gate.weight": 2.0,
            "gate_up_proj": 1.5, "gate_proj": 1.5, "up_proj": 1.5, "shared_expert_gate": 2.0, "conv1d": 1.5,
            "in_proj": 1.5, "out_proj": 2.0,
            # What a block adds must outweigh the embedding, or a tied model repeats its last token.
            "o_proj": 3.0 if gemma and tied else 2.0, "down_proj": 3.0 if gemma and tied else 2.0,
        }  # fmt: skip
        return 0.0, next(gain for part, gain in gains.items() if part in name) / fan_in

    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            mean, std = scale_of(name, weight)
            drawn = mean + normal(weight.shape, std)
            if config.model_type == "qwen3_5_text" and "norm" in name:
                # mlx-lm stores 1 + w, which must be as exact in bf16.
                drawn = (drawn * 64).round() / 64
            weight.copy_(drawn)


def build(tiny: Tiny, folder: pathlib.Path, seed: int) -> None:
    """Writes the model folder: config, weights as stored, generation config where one is given."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config_path = folder / "config.json"
    config_path.write_text(json.dumps(tiny.config), encoding="utf-8")
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    (tiny.draw or draw)(model, seed)
    model = model.to(getattr(torch, tiny.dtype))
    model.config.dtype = getattr(torch, tiny.dtype)
    shards = {} if tiny.shard_bytes is None else {"max_shard_size": tiny.shard_bytes}
    model.save_pretrained(folder, **shards)
    if "text_config" in tiny.config and not hasattr(model.model, "language_model"):
        wrap(folder)
    if tiny.form == "4.x":
        published = {**tiny.config, "torch_dtype": tiny.dtype, "transformers_version": "4.46.3"}
        config_path.write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
        (folder / "generation_config.json").unlink(missing_ok=True)
    if tiny.generation is not None:
        text = json.dumps(tiny.generation, indent=2) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8")


def wrap(folder: pathlib.Path) -> None:
    """Names the tensors of the one file as a multimodal model's folder does, beside some of its other parts."""
    path = folder / "model.safetensors"
    plain = safetensors.torch.load_file(path)
    inside = {f"model.language_model.{name.removeprefix('model.')}": it for name, it in plain.items() if name.startswith("model.")}
    others = {name: it for name, it in plain.items() if not name.startswith("model.")}
    unused = {"model.visual.merger.norm.bias": torch.zeros(4), "mtp.norm.weight": torch.zeros(4)}
    safetensors.torch.save_file({**inside, **others, **unused}, path, {"format": "pt"})


def text_of(model: torch.nn.Module) -> torch.nn.Module:
    """The language model's layers and what is around them."""
    return getattr(model.model, "language_model", model.model)


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    """The norm before the head, which families name in several ways."""
    text = text_of(model)
    return next(getattr(text, it) for it in ("norm", "norm_f", "final_layernorm", "embedding_norm") if hasattr(text, it))


def load(folder: pathlib.Path, **overrides) -> torch.nn.Module:
    """The model of a folder in fp32, ready to run; `overrides` change its config."""
    config = AutoConfig.from_pretrained(folder) if not overrides else changed(folder, overrides)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def changed(folder: pathlib.Path, overrides: dict):
    """The folder's config with fields changed where they stand, at the top or among the RoPE's."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "layer_types" in raw and "layer_types" not in overrides:
        # transformers wrote them out; a changed window pattern must derive them again.
        if {"use_sliding_window", "max_window_layers", "sliding_window_pattern", "full_attention_interval"} & overrides.keys():
            del raw["layer_types"]
    for key, value in overrides.items():
        text = raw.get("text_config", raw)
        rope = text.get("rope_parameters") or {}
        (rope if key in rope else text)[key] = value
    return AutoConfig.for_model(raw.pop("model_type"), **raw)
