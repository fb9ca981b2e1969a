"""Trains the bundled model: first its tokenizer, then the network, from `corpus.py` alone.

    python train.py                       # the whole recipe in one run, into ../
    python train.py --minutes 5 --out /tmp/try
    python train.py --resume --seed 2     # more of the corpus, from the weights in ../

The schedule is over a fixed number of tokens, so the run does not depend on the
speed of the machine; a run that must end by the clock gives `--minutes`, and the
schedule is then stretched over the time. Every random draw follows from `--seed`.
The folder written is an ordinary Hugging Face one, and is rewritten at each checkpoint,
each file under a temporary name first.
"""

import argparse
import csv
import json
import math
import os
import pathlib
import time

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

from corpus import ACT_WEIGHTS, Corpus

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 2560
END = "<|endoftext|>"
VALIDATION_SEED = 20240608
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(seed, documents=30_000):
    """A byte-level BPE: any text has tokens, and the corpus's own words have one each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    corpus = Corpus(seed, echo=0)
    texts = (corpus.document() for _ in range(documents))
    tokenizer.train_from_iterator((strip_special(t) for t in texts), trainer)
    return tokenizer


def strip_special(text):
    for token in SPECIAL:
        text = text.replace(token, "\n")
    return text


def write_text(path, text):
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_folder(out, model, tokenizer):
    """The Hugging Face folder: weights in bf16, config, tokenizer, chat template."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json.tmp"))
    os.replace(out / "tokenizer.json.tmp", out / "tokenizer.json")
    write_text(out / "chat_template.jinja", CHAT_TEMPLATE)
    write_text(out / "tokenizer_config.json", json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": END,
        "extra_special_tokens": ["<|im_start|>"], "model_max_length": 1024,
        "clean_up_tokenization_spaces": False}, indent=2) + "\n")
    write_text(out / "generation_config.json", json.dumps({
        "eos_token_id": [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id(END)],
        "pad_token_id": tokenizer.token_to_id(END)}, indent=2) + "\n")
    config = model.config.to_dict()
    keep = ["architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings",
            "rms_norm_eps", "attention_bias", "attention_dropout", "tie_word_embeddings", "initializer_range",
            "use_cache", "use_sliding_window", "eos_token_id", "pad_token_id", "bos_token_id"]
    written = {key: config.get(key) for key in keep}
    written.update(architectures=["Qwen3ForCausalLM"], rope_theta=10000.0, rope_scaling=None, torch_dtype="bfloat16",
                   bos_token_id=None, eos_token_id=tokenizer.token_to_id("<|im_end|>"), pad_token_id=tokenizer.token_to_id(END))
    write_text(out / "config.json", json.dumps(written, indent=2) + "\n")
    weights = {name: w.detach().to(torch.bfloat16).contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, str(out / "model.safetensors.tmp"), metadata={"format": "pt"})
    os.chmod(out / "model.safetensors.tmp", 0o644)
    os.replace(out / "model.safetensors.tmp", out / "model.safetensors")


def rows(corpus, tokenizer, length):
    """Endless rows of `length` token ids. Each begins with a document's first token, as in use."""
    end = tokenizer.token_to_id(END)
    while True:
        row = []
        while len(row) < length:
            row += tokenizer.encode(corpus.document()).ids + [end]
        yield row[:length]


def build_model(tokenizer):
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=256, intermediate_size=384, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=1024,
        tie_word_embeddings=True, rope_theta=10000.0, rms_norm_eps=1e-6)
    return Qwen3ForCausalLM(config)


def loss_of(model, batch):
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.size(-1)), batch[:, 1:].reshape(-1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--log", type=pathlib.Path, default=pathlib.Path("loss.csv"))
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--minutes", type=float, help="end by the clock instead of by tokens")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--muon-lr", type=float, default=5e-3)
    parser.add_argument("--echo", type=int, default=ACT_WEIGHTS["echo"], help="weight of the echo act in the corpus")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out, with a new schedule; give another --seed")
    parser.add_argument("--seed", type=int, default=20240607)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    if args.resume:
        tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
        model = Qwen3ForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(args.seed)
        model = build_model(tokenizer)
    print(f"vocabulary {tokenizer.get_vocab_size()}, parameters {sum(p.numel() for p in model.parameters()):,}", flush=True)
    # Muon for the matrices inside the blocks, which needs fewer tokens than AdamW; AdamW for the rest.
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = [torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    peaks = [args.muon_lr, args.lr]
    streams = {length: rows(Corpus(args.seed + length, echo=args.echo), tokenizer, length + 1) for length in (512, 1024)}
    held = rows(Corpus(VALIDATION_SEED, "held-out", echo=0), tokenizer, 513)
    validation = torch.tensor([next(held) for _ in range(16)])

    start, seen, step, checkpoint = time.time(), 0, 0, time.time()
    log = args.log.open("w", newline="")
    table = csv.writer(log)
    table.writerow(["step", "tokens", "seconds", "learning_rate", "train_loss", "held_out_loss"])
    while True:
        progress = (time.time() - start) / (60 * args.minutes) if args.minutes else seen / args.tokens
        if progress >= 1:
            break
        share = min(1, (step + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for optimizer, peak in zip(optimizers, peaks):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        # Every eighth batch has rows of the full context, so that late positions are trained too.
        length = 1024 if step % 8 == 7 else 512
        batch = torch.tensor([next(streams[length]) for _ in range(args.batch_tokens // length)])
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += args.batch_tokens
        step += 1
        if step % 20 == 0 or step == 1:
            held_loss = ""
            if step % 200 == 0:
                with torch.no_grad():
                    held_loss = f"{loss_of(model, validation).item():.4f}"
            table.writerow([step, seen, round(time.time() - start, 1), f"{args.lr * share:.2e}", f"{loss.item():.4f}", held_loss])
            log.flush()
            if step % 100 == 0:
                print(f"step {step} tokens {seen:,} {seen / (time.time() - start):.0f} tokens/s loss {loss.item():.3f} {held_loss}", flush=True)
        if time.time() - checkpoint > 300:
            write_folder(args.out, model, tokenizer)
            checkpoint = time.time()
    write_folder(args.out, model, tokenizer)
    print(f"{seen:,} tokens in {(time.time() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
