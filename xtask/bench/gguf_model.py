"""Writes models of random weights for `cargo xtask bench --peers llama.cpp`.

Usage: python gguf_model.py SHAPE FOLDER

Writes FOLDER/{bf16,q8_0,q4_0}.gguf in the shape that FOLDER/config.json has (Qwen3, or Qwen3-MoE). With
SHAPE `moe` there is no folder yet: it gets the config and weights of a mixture with the ratios of
Qwen3-30B-A3B, a quarter as wide and as deep, as transformers would write it.
"""

import json
import pathlib
import sys
import zlib

import gguf
import numpy

MIXTURE = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 512, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128, "intermediate_size": 1536,
    "moe_intermediate_size": 192, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 4096, "vocab_size": 37984, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "attention_bias": False,
}  # fmt: skip
TYPES = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor by llama.cpp's name, with its shape."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    found = {"token_embd": (config["vocab_size"], hidden), "output_norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["output"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = {
            "attn_norm": (hidden,), "attn_q": (heads * dim, hidden), "attn_k": (kv_heads * dim, hidden),
            "attn_v": (kv_heads * dim, hidden), "attn_output": (hidden, heads * dim), "attn_q_norm": (dim,),
            "attn_k_norm": (dim,), "ffn_norm": (hidden,),
        }  # fmt: skip
        if experts := config.get("num_experts"):
            inner = config["moe_intermediate_size"]
            at |= {
                "ffn_gate_inp": (experts, hidden), "ffn_gate_exps": (experts, inner, hidden),
                "ffn_up_exps": (experts, inner, hidden), "ffn_down_exps": (experts, hidden, inner),
            }  # fmt: skip
        else:
            inner = config["intermediate_size"]
            at |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
        found |= {f"blk.{layer}.{name}": shape for name, shape in at.items()}
    return found


def draw(name: str, shape: tuple[int, ...]) -> numpy.ndarray:
    rng = numpy.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 1:
        return numpy.ones(shape, numpy.float32)
    return rng.standard_normal(shape, numpy.float32) * numpy.float32(0.02)


def write_gguf(path: pathlib.Path, config: dict, kind: gguf.GGMLQuantizationType) -> None:
    name = "qwen3moe" if config.get("num_experts") else "qwen3"
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    # Tokens are numbers here.
    writer.add_tokenizer_model("no_vocab")
    if experts := config.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    for name, shape in shapes(config).items():
        numbers = draw(name, shape)
        # As llama.cpp's own converter has it: norms and routers stay fp32.
        is_float = len(shape) == 1 or name.endswith("ffn_gate_inp")
        if is_float:
            writer.add_tensor(f"{name}.weight", numbers)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


HF_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj",
}  # fmt: skip


def write_folder(folder: pathlib.Path, config: dict) -> None:
    """The mixture as a folder of transformers', an expert to a tensor."""
    header, data, at = {}, [], 0
    for name, shape in shapes(config).items():
        *block, name_in_block = name.split(".")
        before = f"model.layers.{block[1]}." if block else ""
        bits = draw(name, shape).view(numpy.uint32) >> numpy.uint32(16)
        bits = bits.astype(numpy.uint16)
        new = HF_NAMES[name_in_block]
        single = [(f"{before}{new}.weight", bits)]
        if len(shape) == 3:
            single = [(f"{before}mlp.experts.{index}.{new}.weight", it) for index, it in enumerate(bits)]
        for key, numbers in single:
            header[key] = {"dtype": "BF16", "shape": list(numbers.shape), "data_offsets": [at, at + numbers.nbytes]}
            data.append(numbers)
            at += numbers.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors.part", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for numbers in data:
            file.write(numbers.tobytes())
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "model.safetensors.part").rename(folder / "model.safetensors")


def main() -> None:
    shape, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if shape == "moe" and not (folder / "model.safetensors").exists():
        write_folder(folder, MIXTURE)
    config = json.loads((folder / "config.json").read_text())
    for name, kind in TYPES.items():
        path = folder / f"{name}.gguf"
        if not path.exists():
            write_gguf(path.with_suffix(".part"), config, kind)
            path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    main()
