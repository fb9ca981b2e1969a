"""Tiny models of further families, one or two each, smaller than those of `_tiny.py` and with fewer prompts.

What they are there to show is the same; what is recorded of them is as much as tells one graph from
another.
"""

import json
import math
import pathlib

import numpy
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.mistral4 import Mistral4Config, Mistral4ForCausalLM
from transformers.models.muse_glimmer import MuseGlimmerConfig, MuseGlimmerForConditionalGeneration

from _tiny import Tiny

# The classes are there, but not under their `model_type`.
AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(MuseGlimmerConfig, MuseGlimmerForConditionalGeneration, exist_ok=True)


def config(architecture: str, model_type: str, **fields) -> dict:
    """Fields every config has."""
    made = {
        "architectures": [architecture], "model_type": model_type, "vocab_size": 67, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **fields,
    }  # fmt: skip
    return {key: value for key, value in made.items() if key != "head_dim" or value is not None}


def small(name: str, of: dict, *, matters: tuple[dict, ...] = (), **fields) -> Tiny:
    """A model with few prompts."""
    return Tiny(name, of, **{"draw": draw, "lengths": (1, 23), "batch": (5, 23, 1), "dtype": "bfloat16", "matters": matters, **fields})


def draw(model: torch.nn.Module, seed: int) -> None:
    """As `_tiny.draw`: logits that spread widely, attention that is neither flat nor stuck.

    Buffers that a checkpoint holds are drawn, too: corrections of routers are 0 in a new model.
    """
    config = model.config
    rng = numpy.random.default_rng(seed)
    tied = config.get_text_config().tie_word_embeddings
    gemma4 = config.model_type.startswith(("gemma4", "gemma3n"))
    last_norm = 2.0 if gemma4 or config.model_type == "cohere2" else 1.0

    def scale_of(name: str, weight: torch.Tensor) -> tuple[float, float]:
        """Mean and standard deviation."""
        if "correction_bias" in name:
            return 0.0, 0.15
        if name.endswith("sinks"):
            return 0.5, 1.0
        if name.endswith("A_log"):
            return -1.5, 1.0
        if name.endswith(".D"):
            return 0.5, 0.3
        if name.endswith("bias"):
            return 0.0, 0.3
        if name.endswith(("layer_scalar", "per_expert_scale", "router.scale", "correct_output_scale")):
            return 0.9, 0.15
        if config.model_type == "muse_glimmer" and "layernorm" in name:
            # Less 1.
            return 0.0, 0.2
        if "norm" in name:
            if any(it in name for it in ("q_norm", "k_norm", "query_layernorm", "key_layernorm", "q_layernorm", "k_layernorm")):
                # Gemma 4 multiplies its scores by nothing.
                return 0.7 if gemma4 else 1.5, 0.2
            if gemma4 and "post_" in name:
                return 2.0, 0.2
            return last_norm if name == "model.norm.weight" else 1.0, 0.2
        transposed = config.model_type == "gpt_oss" and "experts" in name
        fan_in = math.sqrt(weight.shape[-2 if transposed else -1])
        if "embed_tokens" in name or "embeddings" in name:
            return 0.0, (2.0 if gemma4 else 4.0) / fan_in if tied or gemma4 else 1.0
        gains = {"lm_head": 4.0, "modality_router": 16.0, "v_proj": 1.3, "router": 2.0, "gate.weight": 2.0, "o_proj": 2.0, "down_proj": 2.0, "c_proj": 2.0}
        return 0.0, next((gain for part, gain in gains.items() if part in name), 1.5) / fan_in

    held = set(model.state_dict())
    drawn = [*model.named_parameters(), *(it for it in model.named_buffers() if it[0] in held)]
    with torch.no_grad():
        for name, weight in sorted(drawn):
            mean, std = scale_of(name, weight)
            noise = rng.standard_normal(tuple(weight.shape)).astype(numpy.float32)
            weight.copy_(mean + torch.from_numpy(noise) * std)


def blocks(name: str, shape, seed: int) -> dict[str, torch.Tensor]:
    """Experts in OpenAI's mxfp4 for a tensor of `[experts, inputs, outputs]`."""
    experts, inputs, outputs = shape
    rng = numpy.random.default_rng([seed, len(name)])
    of_blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=numpy.uint8)
    of_scales = rng.integers(122, 126, (experts, outputs, inputs // 32), dtype=numpy.uint8)
    return {f"{name}_blocks": torch.from_numpy(of_blocks), f"{name}_scales": torch.from_numpy(of_scales)}


def is_packed(name: str) -> bool:
    return ".experts." in name and not name.endswith("bias")


def draw_packed(model: torch.nn.Module, seed: int) -> None:
    """As `draw`, with experts that mxfp4 can hold, unpacked by transformers."""
    draw(model, seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_packed(name):
                packed = blocks(name, weight.shape, seed).values()
                weight.copy_(convert_moe_packed_tensors(*packed, dtype=torch.float32))


def pack(folder: pathlib.Path, seed: int) -> None:
    """Puts the packed experts into the folder, as OpenAI's are."""
    path = folder / "model.safetensors"
    dense = safetensors.torch.load_file(path)
    packed = [blocks(name, it.shape, seed) for name, it in dense.items() if is_packed(name)]
    rest = {name: it for name, it in dense.items() if not is_packed(name)}
    safetensors.torch.save_file({key: it for part in [rest, *packed] for key, it in part.items()}, path, {"format": "pt"})
    config_path = folder / "config.json"
    published = {**json.loads(config_path.read_text(encoding="utf-8")), "quantization_config": {"quant_method": "mxfp4"}}
    config_path.write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")


MOE = {"moe_intermediate_size": 12, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 10, "q_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "head_dim": None,
          "num_key_value_heads": 4}

MODELS = (
    # gpt-oss: windows, sinks, an embedding whose ramp is not rounded, a gate that is clamped.
    small("gpt-oss", config("GptOssForCausalLM", "gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
                            tie_word_embeddings=False, swiglu_limit=1.5, rope_theta=1000.0, rope_scaling={
                                "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 24, "beta_fast": 8.0,
                                "beta_slow": 1.0, "truncate": False}),
          form="4.x", matters=({"sliding_window": 100}, {"swiglu_limit": 7.0}, {"num_experts_per_tok": 1}, {"rope_scaling": None}), seed=2),
    small("olmo2", config("Olmo2ForCausalLM", "olmo2", tie_word_embeddings=False, num_key_value_heads=4, head_dim=4, attention_bias=True), seed=3),
    small("olmo3", config("Olmo3ForCausalLM", "olmo3", num_hidden_layers=4, sliding_window=7, tie_word_embeddings=False, rope_scaling={
                              "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}),
          form="4.x", matters=({"sliding_window": 100}, {"rope_scaling": None}), seed=3),
    small("smollm3", config("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=4, no_rope_layer_interval=2, attention_bias=True,
                            use_sliding_window=True, sliding_window=9, rope_theta=500.0),
          form="4.x", matters=({"no_rope_layer_interval": 4}, {"use_sliding_window": False}), seed=9),
    small("seed-oss", config("SeedOssForCausalLM", "seed_oss", attention_bias=True, attention_out_bias=True, mlp_bias=True,
                             attention_dropout=0.0, residual_dropout=0.0, tie_word_embeddings=True), seed=4),
    small("ministral3", config("Ministral3ForCausalLM", "ministral3", rope_parameters={
                                   "type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 8,
                                   "beta_fast": 4.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.6}),
          matters=({"llama_4_scaling_beta": 0.0}, {"factor": 1.0})),
    small("mixtral", config("MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=11,
                            tie_word_embeddings=False),
          matters=({"num_experts_per_tok": 1}, {"sliding_window": None}), seed=5),
    small("qwen2-moe", config("Qwen2MoeForCausalLM", "qwen2_moe", num_experts=5, norm_topk_prob=True, head_dim=4, use_sliding_window=True,
                              sliding_window=6, max_window_layers=2, shared_expert_intermediate_size=20, mlp_only_layers=[1], **MOE),
          matters=({"norm_topk_prob": False}, {"use_sliding_window": False})),
    small("glm4", config("Glm4ForCausalLM", "glm4", attention_bias=True, partial_rotary_factor=0.5, tie_word_embeddings=False,
                         rope_theta=500.0),
          form="4.x", matters=({"partial_rotary_factor": 1.0},)),
    small("glm4-moe", config("Glm4MoeForCausalLM", "glm4_moe", n_routed_experts=6, n_group=1, topk_group=1, n_shared_experts=2,
                             first_k_dense_replace=1, routed_scaling_factor=1.4, use_qk_norm=True, attention_bias=True,
                             partial_rotary_factor=0.5, tie_word_embeddings=False, rope_theta=1000.0, **MOE),
          form="4.x", matters=({"routed_scaling_factor": 1.0}, {"norm_topk_prob": False}, {"partial_rotary_factor": 1.0}), seed=4),
    small("starcoder2", config("Starcoder2ForCausalLM", "starcoder2", head_dim=None, tie_word_embeddings=False, sliding_window=10, norm_epsilon=1e-3, use_bias=True),
          matters=({"sliding_window": None},), seed=12),
    small("cohere2", config("Cohere2ForCausalLM", "cohere2", num_hidden_layers=4, head_dim=4, sliding_window=8, sliding_window_pattern=3,
                            layer_norm_eps=1e-3, logit_scale=0.4, rope_theta=1000.0),
          form="4.x", matters=({"sliding_window": 100}, {"logit_scale": 0.3}, {"sliding_window_pattern": 2}), seed=5),
    small("granite", config("GraniteForCausalLM", "granite", embedding_multiplier=1.5, attention_multiplier=0.2, residual_multiplier=0.6,
                            logits_scaling=1.5, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, head_dim=None),
          matters=({"embedding_multiplier": 1.0}, {"attention_multiplier": 0.5}, {"residual_multiplier": 1.0}, {"logits_scaling": 1.0}), seed=9),
    small("exaone4", config("Exaone4ForCausalLM", "exaone4", num_hidden_layers=4, sliding_window=8, sliding_window_pattern=4,
                            tie_word_embeddings=False, rope_theta=1000.0),
          form="4.x", matters=({"sliding_window": 100}, {"sliding_window_pattern": 2})),
    small("ernie4_5", config("Ernie4_5ForCausalLM", "ernie4_5", use_bias=True, rope_theta=1000.0), form="4.x",
          matters=({"rope_theta": 50.0},), seed=15),
    small("ernie4_5-moe", config("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", num_hidden_layers=4, head_dim=4, moe_num_experts=5, moe_k=2,
                                 moe_intermediate_size=12, moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=2,
                                 moe_norm_min=0.5, tie_word_embeddings=True),
          matters=({"moe_k": 1}, {"moe_norm_min": 1e-12})),
    small("hunyuan", config("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", tie_word_embeddings=True, rope_theta=500.0,
                            rope_scaling={"type": "dynamic", "alpha": 6.0, "factor": 1.0}),
          form="4.x", matters=({"rope_scaling": None},)),
    small("minimax-m2", config("MiniMaxM2ForCausalLM", "minimax_m2", num_local_experts=5, num_experts_per_tok=2, rotary_dim=4,
                               tie_word_embeddings=False, rope_theta=1000.0),
          form="4.x", matters=({"num_experts_per_tok": 1}, {"rotary_dim": 8}), seed=1),
    # LFM2: short convolutions, a width that is rounded up; its mixture, with a correction of the choice.
    small("lfm2", config("Lfm2ForCausalLM", "lfm2", head_dim=None, num_hidden_layers=4, norm_eps=1e-3, conv_L_cache=3, full_attn_idxs=[2],
                         block_auto_adjust_ff_dim=True, block_multiple_of=8, block_ffn_dim_multiplier=1.3, block_ff_dim=30,
                         tie_embedding=True, rope_theta=1000.0),
          form="4.x", matters=({"norm_eps": 1e-1}, {"rope_theta": 50.0})),
    small("lfm2-moe", config("Lfm2MoeForCausalLM", "lfm2_moe", head_dim=None, num_hidden_layers=4, num_dense_layers=1, num_experts=5,
                             layer_types=["conv", "full_attention", "conv", "conv"], norm_topk_prob=True, conv_L_cache=4,
                             routed_scaling_factor=1.3, tie_word_embeddings=True, **MOE),
          matters=({"num_experts_per_tok": 1}, {"norm_topk_prob": False}, {"routed_scaling_factor": 1.0}), seed=3),
    # Granite 4: Mamba-2 with two groups of heads and attention without positions, experts; one group, rotary, a dense half.
    small("granite-hybrid", config("GraniteMoeHybridForCausalLM", "granitemoehybrid", head_dim=None, layer_types=["mamba", "attention", "mamba"],
                                   mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=6, mamba_d_conv=3, mamba_expand=2,
                                   mamba_chunk_size=16, mamba_conv_bias=True, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=20,
                                   embedding_multiplier=1.5, attention_multiplier=0.3, residual_multiplier=0.7, logits_scaling=1.3,
                                   tie_word_embeddings=True, attention_bias=False, rms_norm_eps=1e-5),
          form="4.x", lengths=(1, 70), matters=({"num_experts_per_tok": 1}, {"residual_multiplier": 1.0}, {"position_embedding_type": "rope"})),
    small("granite-hybrid-dense", config("GraniteMoeHybridForCausalLM", "granitemoehybrid", head_dim=None,
                                         layer_types=["linear_attention", "full_attention", "linear_attention"], mamba_n_heads=2,
                                         mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8, num_local_experts=0,
                                         shared_intermediate_size=20, position_embedding_type="rope", rope_theta=100.0,
                                         attention_multiplier=0.4, attention_bias=True, mamba_chunk_size=8)),
    # Phi-4-mini: a tied head, partly rotated heads, and longrope, all at once.
    small("phi4-mini", config("Phi3ForCausalLM", "phi3", tie_word_embeddings=True, partial_rotary_factor=0.75, head_dim=None, hidden_size=32,
                              original_max_position_embeddings=16, rope_theta=1000.0, sliding_window=300, rope_scaling={
                                  "type": "longrope", "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.5, 3.0, 7.0]}),
          form="4.x", lengths=(1, 9, 23), batch=(20, 23, 18),
          matters=({"rope_scaling": None}, {"partial_rotary_factor": 1.0, "rope_scaling": None}), seed=4),
    # DeepSeek V2 and V3: latent attention with and without a latent for queries; routers by groups; a scaled embedding.
    small("deepseek-v2", config("DeepseekV2ForCausalLM", "deepseek_v2", tie_word_embeddings=False, topk_method="group_limited_greedy",
                                n_routed_experts=6, n_group=3, topk_group=2, n_shared_experts=2, first_k_dense_replace=1,
                                routed_scaling_factor=1.6, rope_theta=1000.0, rope_scaling={
                                    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7,
                                    "mscale_all_dim": 0.5}, **{**LATENT, "q_lora_rank": None}, **MOE),
          form="4.x", matters=({"routed_scaling_factor": 1.0}, {"rope_scaling": None}, {"first_k_dense_replace": 0}), seed=7),
    small("deepseek-v3", config("DeepseekV3ForCausalLM", "deepseek_v3", tie_word_embeddings=False, n_routed_experts=8, n_group=4,
                                topk_group=2, n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=1.5,
                                attention_bias=True, rope_theta=1000.0, rope_scaling={
                                    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0,
                                    "mscale_all_dim": 1.0}, **LATENT, **MOE),
          form="4.x", lengths=(1, 40), matters=({"topk_group": 4}, {"norm_topk_prob": False}, {"rope_scaling": None}), seed=9),
    small("glm4-moe-lite", config("Glm4MoeLiteForCausalLM", "glm4_moe_lite", tie_word_embeddings=False, n_routed_experts=6, n_group=1,
                                  topk_group=1, n_shared_experts=1, routed_scaling_factor=1.8, rms_norm_eps=1e-2,
                                  mlp_layer_types=["sparse", "dense", "sparse"], **LATENT, **MOE),
          matters=({"mlp_layer_types": ["sparse", "sparse", "sparse"]}, {"rms_norm_eps": 1e-5}), dtype="float32", seed=3),
    small("mistral4", config("Mistral4ForCausalLM", "mistral4", tie_word_embeddings=False, n_routed_experts=6, n_group=3, topk_group=2,
                             n_shared_experts=1, first_k_dense_replace=1, rope_parameters={
                                 "type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 1.0,
                                 "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}, **LATENT, **MOE),
          matters=({"llama_4_scaling_beta": 0.0}, {"norm_topk_prob": False}, {"topk_group": 3}), seed=5),
    # Gemma 4 E2B: inputs per layer, shared columns of both kinds, two sizes of heads.
    small("gemma4", config("Gemma4ForCausalLM", "gemma4_text", num_hidden_layers=4, global_head_dim=12, sliding_window=7,
                           hidden_size_per_layer_input=6, vocab_size_per_layer_input=67, num_kv_shared_layers=2, use_double_wide_mlp=True,
                           final_logit_softcapping=20.0, hidden_activation="gelu_pytorch_tanh", layer_types=[
                               "sliding_attention", "full_attention", "sliding_attention", "full_attention"]),
          form="4.x", matters=({"sliding_window": 100}, {"final_logit_softcapping": None}), seed=23),
    # Gemma 4 26B: experts beside the dense half, values that are keys, fewer heads in full layers.
    small("gemma4-moe", config("Gemma4ForCausalLM", "gemma4_text", num_hidden_layers=3, global_head_dim=16, sliding_window=9,
                               hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True,
                               num_experts=5, top_k_experts=2, moe_intermediate_size=12, tie_word_embeddings=False,
                               hidden_activation="gelu_pytorch_tanh",
                               layer_types=["sliding_attention", "full_attention", "full_attention"]),
          matters=({"sliding_window": 100}, {"top_k_experts": 1}), seed=3),
    small("gemma4-unified", config("Gemma4UnifiedForCausalLM", "gemma4_unified_text", global_head_dim=16, sliding_window=9,
                                   attention_k_eq_v=True, num_global_key_value_heads=1, hidden_activation="gelu_pytorch_tanh",
                                   layer_types=["full_attention", "sliding_attention", "full_attention"]),
          form="4.x", matters=({"sliding_window": 100},), seed=8),
    # Gemma 3n: three streams, sparse gates, shared columns of both kinds, a vocabulary beyond the inputs per layer.
    small("gemma3n", config("Gemma3nForCausalLM", "gemma3n_text", num_hidden_layers=4, sliding_window=7, hidden_size_per_layer_input=6,
                            vocab_size_per_layer_input=50, num_kv_shared_layers=2, laurel_rank=4, altup_num_inputs=3,
                            intermediate_size=[24, 24, 32, 24], activation_sparsity_pattern=[0.7, 0.0, 0.4, 0.0], tie_word_embeddings=True,
                            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
                            rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                                             "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
          matters=({"sliding_window": 100}, {"activation_sparsity_pattern": [0.0] * 4}, {"final_logit_softcapping": 10.0},
                   {"altup_correct_scale": False})),
    # Mellum 2: windows and dense layers by list, two rotary embeddings, of which the full layers' is scaled.
    small("mellum", config("MellumForCausalLM", "mellum", sliding_window=7, attention_bias=True, tie_word_embeddings=False, num_experts=5,
                           layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                           mlp_layer_types=["sparse", "dense", "sparse"], rope_parameters={
                               "full_attention": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
                                                  "original_max_position_embeddings": 16},
                               "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}, **MOE),
          matters=({"sliding_window": 100}, {"norm_topk_prob": False}, {"num_experts_per_tok": 1})),
    # Laguna: heads by layer, gates of heads, partly rotated full layers, a cap on the router; gates of every number.
    small("laguna", config("LagunaForCausalLM", "laguna", num_hidden_layers=4, num_attention_heads_per_layer=[4, 6, 2, 4], sliding_window=8,
                           num_experts=5, shared_expert_intermediate_size=20, moe_routed_scaling_factor=1.7, moe_router_logit_softcapping=0.8,
                           layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
                           tie_word_embeddings=False, rope_parameters={
                               "full_attention": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "partial_rotary_factor": 0.5,
                                                  "original_max_position_embeddings": 16},
                               "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}, **MOE),
          matters=({"sliding_window": 100}, {"moe_routed_scaling_factor": 1.0}, {"moe_router_logit_softcapping": 0.0})),
    small("laguna-elements", config("LagunaForCausalLM", "laguna", gating="per-element", num_experts=4, attention_bias=True,
                                    shared_expert_intermediate_size=12, mlp_layer_types=["sparse", "dense", "sparse"],
                                    tie_word_embeddings=True, **MOE),
          matters=({"num_experts_per_tok": 1},)),
    # Muse Glimmer: the wrapper with its eyes.
    small("muse-glimmer", {
              "architectures": ["MuseGlimmerForConditionalGeneration"], "model_type": "muse_glimmer", "out_hidden_size": 16,
              "projector_hidden_size": 8, "text_config": {
                  **config("MuseGlimmerForConditionalGeneration", "muse_glimmer_text", num_hidden_layers=5, sliding_window=7,
                           qk_scale_factor=2.5, output_multiplier=0.8, final_logit_softcapping=12.0, tie_word_embeddings=False,
                           rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 500.0})},
              "vision_config": {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "patch_size": 2,
                                "pos_emb_height": 2, "pos_emb_width": 2, "max_position_embeddings": 4}},
          matters=({"sliding_window": 100}, {"qk_scale_factor": 1.0}, {"output_multiplier": 1.0}, {"final_logit_softcapping": 30.0},
                   {"rms_norm_eps": 1e-1})),
    # Nemotron-H: all four kinds of block, groups of experts in a space of their own; and by letters, without experts.
    small("nemotron-h", config("NemotronHForCausalLM", "nemotron_h", num_hidden_layers=6, layers_block_type=[
                                   "linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"],
                               mamba_num_heads=4, mamba_head_dim=8, n_groups=2, ssm_state_size=6, conv_kernel=3, chunk_size=16,
                               n_routed_experts=6, n_group=3, topk_group=2, moe_latent_size=8, moe_shared_expert_intermediate_size=20,
                               routed_scaling_factor=1.8, mlp_bias=True, time_step_limit=[0.3, 1.1], tie_word_embeddings=False, **MOE),
          lengths=(1, 70), matters=({"num_experts_per_tok": 1}, {"routed_scaling_factor": 1.0}, {"norm_topk_prob": False}, {"topk_group": 3})),
    small("nemotron-h-letters", config("NemotronHForCausalLM", "nemotron_h", num_hidden_layers=5, hybrid_override_pattern="M-*-M",
                                       mamba_num_heads=2, mamba_head_dim=8, n_groups=1, ssm_state_size=5, conv_kernel=4, chunk_size=8,
                                       layer_norm_epsilon=1e-3, time_step_min=1e-12, tie_word_embeddings=False),
          form="4.x", matters=({"layer_norm_epsilon": 1e-1},)),
    # Falcon-H1: every factor another; a norm before the gate; without a norm, with a tied head.
    small("falcon-h1", config("FalconH1ForCausalLM", "falcon_h1", mamba_d_ssm=24, mamba_n_heads=4, mamba_d_head="auto", mamba_n_groups=2,
                              mamba_d_state=6, mamba_d_conv=3, mamba_chunk_size=16, mamba_rms_norm=True, embedding_multiplier=1.4,
                              lm_head_multiplier=0.8, mlp_multipliers=[0.7, 1.3], key_multiplier=0.8, attention_in_multiplier=1.2,
                              attention_out_multiplier=0.9, ssm_multipliers=[0.7, 1.2, 0.8, 1.3, 0.6], ssm_in_multiplier=1.1,
                              ssm_out_multiplier=0.8, tie_word_embeddings=False, rope_theta=1000.0),
          form="4.x", dtype="float32", lengths=(1, 70), matters=({"key_multiplier": 1.0}, {"attention_in_multiplier": 1.0}, {"ssm_in_multiplier": 1.0},
                                               {"ssm_multipliers": [1.0] * 5}, {"mlp_multipliers": [1.0, 1.0]}, {"lm_head_multiplier": 1.0},
                                               {"mamba_norm_before_gate": False})),
    small("falcon-h1-plain", config("FalconH1ForCausalLM", "falcon_h1", head_dim=None, mamba_d_ssm=None, mamba_expand=1, mamba_n_heads=2,
                                    mamba_d_head=8, mamba_n_groups=1, mamba_d_state=5, mamba_d_conv=4, mamba_chunk_size=8,
                                    embedding_multiplier=1.3, lm_head_multiplier=0.7, attention_out_multiplier=0.8, projectors_bias=True, mlp_bias=True,
                                    attention_bias=True, tie_word_embeddings=True)),
    # LFM3: convolutions of seven tokens, windowed and full attention with gates, norms around both halves.
    small("lfm3", config("Lfm3ForCausalLM", "lfm3", num_hidden_layers=4, layer_types=["conv", "sliding_attention", "full_attention", "conv"],
                         sliding_window=8, norm_eps=1e-3, tie_word_embeddings=True, rope_parameters={
                             "full_attention": {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
          matters=({"sliding_window": 100},)),
    small("lfm3-plain", config("Lfm3ForCausalLM", "lfm3", num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"],
                               conv_L_cache=4, use_sandwich_norm=False, use_attention_gate=False, attention_bias=True,
                               tie_word_embeddings=False)),
    # Llama 4: pieces of the text, layers without positions, one expert of each mixture, dense layers; two experts at once.
    small("llama4", config("Llama4ForCausalLM", "llama4_text", num_hidden_layers=4, attention_chunk_size=7, num_local_experts=4,
                           num_experts_per_tok=1, interleave_moe_layer_step=2, intermediate_size=12, intermediate_size_mlp=20,
                           tie_word_embeddings=False, rope_theta=1000.0),
          form="4.x", matters=({"attention_chunk_size": 100}, {"interleave_moe_layer_step": 4}, {"use_qk_norm": False})),
    small("llama4-plain", config("Llama4ForCausalLM", "llama4_text", attention_chunk_size=16, num_local_experts=3, num_experts_per_tok=2,
                                 moe_layers=[1, 2], no_rope_layers=[0, 1, 1], use_qk_norm=False, intermediate_size=16,
                                 intermediate_size_mlp=20, attention_bias=True, tie_word_embeddings=False),
          matters=({"num_experts_per_tok": 1},)),
    # Kimi Linear: states that fade by channel, latents without positions, experts.
    small("kimi-linear", config("KimiLinearForCausalLM", "kimi_linear", num_hidden_layers=4, tie_word_embeddings=False, num_experts=5,
                                num_experts_per_token=2, num_shared_experts=1, moe_intermediate_size=12, routed_scaling_factor=1.6,
                                first_k_dense_replace=1, **{**LATENT, "q_lora_rank": None}, linear_attn_config={
                                    "head_dim": 8, "num_heads": 3, "short_conv_kernel_size": 3, "full_attn_layers": [3], "kda_layers": [1, 2, 4]}),
          form="4.x", lengths=(1, 70), matters=({"num_experts_per_token": 1}, {"routed_scaling_factor": 1.0})),
)  # fmt: skip

NAMES = tuple(it.name for it in MODELS)

# Where a padded row is another text to transformers: positions are columns where queries grow, and the biases of the
# products in front of convolutions reach the first tokens. So no batches of unequal lengths, and no other areas.
UNPADDED = (
    small("nemotron-h-biases", config("NemotronHForCausalLM", "nemotron_h", num_hidden_layers=3, hybrid_override_pattern="M*M",
                                      mamba_num_heads=4, mamba_head_dim=6, n_groups=2, ssm_state_size=5, conv_kernel=4, chunk_size=16,
                                      use_bias=True, use_conv_bias=True, time_step_min=1e-12, tie_word_embeddings=False),
          form="4.x", lengths=(1, 40), batch=(23, 23, 23)),
    small("granite-hybrid-biases", config("GraniteMoeHybridForCausalLM", "granitemoehybrid", head_dim=None, layer_types=["mamba", "attention", "mamba"],
                                          mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=6, mamba_d_conv=3, mamba_expand=2,
                                          mamba_chunk_size=16, mamba_conv_bias=False, mamba_proj_bias=True, num_local_experts=0,
                                          num_experts_per_tok=0, shared_intermediate_size=20, attention_bias=True, tie_word_embeddings=False),
          lengths=(1, 40), batch=(23, 23, 23)),
    small("falcon-h1-biases", config("FalconH1ForCausalLM", "falcon_h1", mamba_d_ssm=24, mamba_n_heads=4, mamba_d_head="auto", mamba_n_groups=2,
                                     mamba_d_state=6, mamba_d_conv=4, mamba_chunk_size=16, mamba_rms_norm=True, mamba_proj_bias=True,
                                     projectors_bias=True, ssm_multipliers=[0.7, 1.2, 0.8, 1.3, 0.6], ssm_in_multiplier=1.3,
                                     tie_word_embeddings=False),
          lengths=(1, 40), batch=(23, 23, 23)),
    small("lfm2-biases", config("Lfm2ForCausalLM", "lfm2", head_dim=None, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"],
                                conv_L_cache=4, conv_bias=True, block_auto_adjust_ff_dim=False, tie_word_embeddings=True),
          lengths=(1, 40), batch=(23, 23, 23)),
    small("llama4-growing", config("Llama4ForCausalLM", "llama4_text", num_hidden_layers=4, attention_chunk_size=9, num_local_experts=2,
                                   floor_scale=6, attn_scale=0.8, intermediate_size=12, intermediate_size_mlp=20,
                                   tie_word_embeddings=False),
          batch=(23, 23, 23), matters=({"attn_temperature_tuning": False}, {"floor_scale": 8192})),
)  # fmt: skip

# Families that are above, with something else set: another activation, another kind of rotation, biases. Other areas do
# without them.
VARIANTS = (
    small("llama-dynamic", config("LlamaForCausalLM", "llama", hidden_act="relu", tie_word_embeddings=False, rope_theta=1000.0,
                                  rope_scaling={"type": "dynamic", "factor": 2.0}),
          form="4.x", matters=({"hidden_act": "silu"},)),
    small("glm4-proportional", config("Glm4ForCausalLM", "glm4", hidden_act="quick_gelu", tie_word_embeddings=False, rope_parameters={
                                          "rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.5, "factor": 1.5}),
          matters=({"hidden_act": "silu"}, {"rope_type": "default"}, {"partial_rotary_factor": 0.25}), seed=3),
    small("deepseek-v2-biases", config("DeepseekV2ForCausalLM", "deepseek_v2", mlp_bias=True, tie_word_embeddings=True, n_routed_experts=4,
                                       n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=1.3, topk_method="greedy",
                                       **LATENT, **MOE), seed=5),
)  # fmt: skip

# gpt-oss in OpenAI's own format, recorded from the same experts unpacked; `pack` puts them in afterwards.
PACKED = (
    small("gpt-oss-mxfp4", config("GptOssForCausalLM", "gpt_oss", hidden_size=32, intermediate_size=32, num_local_experts=3,
                                  num_experts_per_tok=2, num_hidden_layers=2, sliding_window=8, tie_word_embeddings=False,
                                  rope_theta=1000.0, rope_scaling={
                                      "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 24, "beta_fast": 8.0,
                                      "beta_slow": 1.0, "truncate": False}),
          form="4.x", draw=draw_packed),
)  # fmt: skip

# Converted by mlx-lm, as those of `_tiny.py`. It knows no ramp that is not rounded, and no other clamp than 7.
WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 2}
QUANTIZED_SOURCES = (
    small("gpt-oss-q4", config("GptOssForCausalLM", "gpt_oss", num_local_experts=3, num_experts_per_tok=2, sliding_window=8,
                               tie_word_embeddings=False, rope_theta=1000, rope_scaling={
                                   "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
                                   "beta_slow": 1.0}, **WIDE), form="4.x"),
    small("glm4-moe-q4", config("Glm4MoeForCausalLM", "glm4_moe", n_routed_experts=3, n_group=1, topk_group=1, n_shared_experts=1,
                                first_k_dense_replace=1, routed_scaling_factor=1.5, norm_topk_prob=True, use_qk_norm=True,
                                attention_bias=True, partial_rotary_factor=0.5, tie_word_embeddings=False, rope_theta=1000.0,
                                rope_scaling=None, rms_norm_eps=1e-5, moe_intermediate_size=64, num_experts_per_tok=2, **WIDE), form="4.x"),
    small("gemma4-q4", config("Gemma4ForCausalLM", "gemma4_text", global_head_dim=16, sliding_window=9, hidden_size_per_layer_input=0,
                              attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True, num_experts=3,
                              top_k_experts=2, moe_intermediate_size=64, tie_word_embeddings=True, final_logit_softcapping=20.0, num_kv_shared_layers=0,
                              hidden_activation="gelu_pytorch_tanh", layer_types=["sliding_attention", "full_attention"],
                              rope_parameters={
                                  "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
                                  "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 5000.0}},
                              **WIDE), form="4.x"),
)  # fmt: skip
