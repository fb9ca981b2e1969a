"""Writes models of random weights for `cargo xtask bench --peers llama.cpp`.

Usage: python gguf_model.py FOLDER

Writes FOLDER/{bf16,q8_0,q4_0}.gguf in the shape that FOLDER/config.json has (Qwen3, or Qwen3-MoE).
"""

import json
import pathlib
import sys
import zlib

import gguf
import numpy

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


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    for name, kind in TYPES.items():
        path = folder / f"{name}.gguf"
        if not path.exists():
            write_gguf(path.with_suffix(".part"), config, kind)
            path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    main()
