"""Area `training`: losses and gradients of torch, optimizers, adapters.

Every loss is written here from its paper's formula with torch's own operations, and torch
differentiates it.
"""

import json
import math
import pathlib
import shutil
import sys

import numpy
import torch
import torch.nn.functional as F
import transformers
from transformers import get_scheduler, get_wsd_schedule

import _fixture
import _tiny

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent / "build" / "venv" / "peft"))

MODELS = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "qwen3-moe", "qwen3_5")
LENGTHS = (11, 19, 6)
PROMPTS = (4, 1, 5)
IGNORE = -100
# Numbers recorded of each gradient: so many values, evenly spread, and the norm.
KEPT = 6


def record(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    for name in MODELS:
        model = _tiny.load(out.parent / "models" / name)
        _fixture.write_json(out / f"{name}.json", {
            "made_by": _fixture.made_by("torch", "transformers"),
            "kind": "gradients",
            "model": f"../models/{name}",
            **gradients(model, name),
        }, lines_to=2)  # fmt: skip
    adapters(out)
    mlx_adapters(out)
    _fixture.write_json(out / "losses.json", {
        "made_by": _fixture.made_by("torch"), "kind": "losses", **losses()}, lines_to=2)  # fmt: skip
    _fixture.write_json(out / "optimizers.json", {
        "made_by": _fixture.made_by("torch", "transformers"), "kind": "optimizers", **optimizers()}, lines_to=2)  # fmt: skip


def batch_of(rng, vocab: int):
    """Rows of different lengths, padded on the right, of which the prompts' labels are ignored."""
    rows = [rng.integers(3, vocab, length).tolist() for length in LENGTHS]
    labels = [[IGNORE] * prompt + row[prompt:] for row, prompt in zip(rows, PROMPTS)]
    # A hole inside a completion.
    labels[1][7] = IGNORE
    return rows, labels


def padded(rows, value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def logits_of(model, rows) -> torch.Tensor:
    """Right padding needs no mask: nothing sees what comes after it."""
    return model(input_ids=padded(rows, 0), use_cache=False).logits


def shifted(logits, labels):
    """Logits and the labels they predict, one after the other."""
    targets = padded(labels, IGNORE)[:, 1:]
    return logits[:, :-1].reshape(-1, logits.shape[-1]), targets.reshape(-1)


def kept(gradient: torch.Tensor) -> dict:
    flat = gradient.detach().reshape(-1)
    at = numpy.linspace(0, flat.numel() - 1, KEPT).astype(int).tolist()
    return {"norm": number(flat.double().norm()), "at": at, "values": numbers(flat[at])}


def number(value) -> float:
    """Nine digits, which is all that an fp32 number holds."""
    return float(f"{float(value):.9g}")


def numbers(values) -> list:
    values = values.tolist() if hasattr(values, "tolist") else values
    return [numbers(it) if isinstance(it, list) else number(it) for it in values]


def row_logprobs(logits, labels, mean: bool) -> torch.Tensor:
    """The log-probability of each row's labels, as a sum or a mean."""
    targets = padded(labels, IGNORE)[:, 1:]
    mask = targets != IGNORE
    chosen = torch.gather(torch.log_softmax(logits[:, :-1].float(), -1), 2, targets.clamp(min=0)[..., None])[..., 0]
    sums = (chosen * mask).sum(-1)
    return sums / mask.sum(-1) if mean else sums


def gradients(model, name: str) -> dict:
    """One batch, its cross-entropy without and with smoothing, and the gradient of each parameter."""
    rng = numpy.random.default_rng([9, len(name)])
    rows, labels = batch_of(rng, model.config.vocab_size)
    cases = []
    for smoothing in (0.0, 0.1):
        model.zero_grad()
        loss = F.cross_entropy(*shifted(logits_of(model, rows), labels), ignore_index=IGNORE, label_smoothing=smoothing)
        loss.backward()
        found = parameters(model) if smoothing else {}
        cases.append({"smoothing": smoothing, "loss": number(loss.detach()), "gradients": found})
    with torch.no_grad():
        logits = logits_of(model, rows)
        scores = {"sum": numbers(row_logprobs(logits, labels, False)), "mean": numbers(row_logprobs(logits, labels, True))}
    # DPO: the first row is chosen, the second rejected, and the reference is made up.
    model.zero_grad()
    sums = row_logprobs(logits_of(model, rows[:2]), labels[:2], False)
    reference = [round(float(sums[0].detach()) - 2.0, 4), round(float(sums[1].detach()) + 1.5, 4)]
    loss = -F.logsigmoid(0.1 * ((sums[0] - reference[0]) - (sums[1] - reference[1])))
    loss.backward()
    dpo = {"reference": reference, "loss": number(loss.detach()), "gradients": parameters(model)}
    return {"tokens": rows, "labels": labels, "logprobs": scores, "cross_entropy": cases, "dpo": dpo}


def parameters(model) -> dict:
    """What is kept of the gradients, by name. Experts, which transformers 5 stacks, are left out."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and ".experts." not in name:
            found[name] = kept(parameter.grad)
    return found


def losses() -> dict:
    """Losses of made-up logits and log-probabilities, with gradients by what they are made of."""
    generator = torch.Generator().manual_seed(14)
    draw = lambda *shape, scale=1.0: (torch.randn(*shape, generator=generator) * scale).requires_grad_()
    cases = []

    def case(kind: str, loss, inputs: dict, **rest):
        by = torch.autograd.grad(loss, [it for it in inputs.values() if it.requires_grad])
        names = [name for name, it in inputs.items() if it.requires_grad]
        cases.append({
            "kind": kind, **rest, "inputs": {name: numbers(it) for name, it in inputs.items()},
            "loss": number(loss.detach()), "gradients": dict(zip(names, map(numbers, by)))})  # fmt: skip

    labels = [[7, 2, IGNORE, 4], [1, IGNORE, IGNORE, 0]]
    for smoothing in (0.0, 0.2):
        logits = draw(2, 4, 9, scale=3.0)
        flat = logits[:, :-1].reshape(-1, 9), torch.tensor(labels)[:, 1:].reshape(-1)
        loss = F.cross_entropy(*flat, ignore_index=IGNORE, label_smoothing=smoothing)
        case("cross_entropy", loss, {"logits": logits}, labels=labels, smoothing=smoothing)

    targets = torch.tensor([3, 0, 8])
    for estimator in ("full", "reverse", "js", "k1", "k2", "k3"):
        p, q = draw(3, 9, scale=2.0), draw(3, 9, scale=2.0)
        loss = divergence(torch.log_softmax(p, -1), torch.log_softmax(q, -1), targets, estimator)
        case("kl", loss.sum(), {"p": p, "q": q}, estimator=estimator, targets=targets.tolist(), each=numbers(loss.detach()))

    for shape, smoothing in (("sigmoid", 0.0), ("sigmoid", 0.15), ("hinge", 0.0), ("ipo", 0.0)):
        policy, reference = draw(2, 4, scale=4.0), draw(2, 4, scale=4.0).detach()
        margin = (policy[0] - reference[0]) - (policy[1] - reference[1])
        beta = 0.3
        loss = {
            "sigmoid": -(1 - smoothing) * F.logsigmoid(beta * margin) - smoothing * F.logsigmoid(-beta * margin),
            "hinge": torch.relu(1 - beta * margin),
            "ipo": (margin - 1 / (2 * beta)) ** 2,
        }[shape].mean()
        case("dpo", loss, {"policy": policy, "reference": reference}, shape=shape, smoothing=smoothing, beta=beta)

    chosen, rejected = (-draw(4).detach().abs() - 0.1).requires_grad_(), (-draw(4).detach().abs() - 0.1).requires_grad_()
    odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    nll = -chosen.mean()
    case("orpo", nll - 0.25 * F.logsigmoid(odds).mean(), {"chosen": chosen, "rejected": rejected}, beta=0.25)
    loss = -F.logsigmoid(2.0 * (chosen - rejected) - 0.5).mean()
    case("simpo", loss, {"chosen": chosen, "rejected": rejected}, beta=2.0, gamma=0.5)

    policy, reference = draw(5, scale=3.0), draw(5, scale=3.0).detach()
    liked, kl = torch.tensor([True, False, True, True, False]), torch.tensor(0.4)
    ratio = policy - reference
    value = torch.where(liked, torch.sigmoid(0.2 * (ratio - kl)), torch.sigmoid(0.2 * (kl - ratio)))
    case("kto", (1 - value).mean(), {"policy": policy, "reference": reference}, liked=liked.tolist(), kl=0.4, beta=0.2)

    # Answers of 3, 1 and 2 tokens.
    counts = [3, 1, 2]
    advantages = [0.8, -1.1, 0.3]
    for reduction in ("answers", "tokens", "constant"):
        policy, old, reference = draw(6), draw(6).detach(), draw(6).detach()
        of_tokens = torch.tensor([a for a, n in zip(advantages, counts) for _ in range(n)])
        rho = torch.exp(policy - old)
        gain = torch.minimum(rho * of_tokens, rho.clamp(0.8, 1.3) * of_tokens)
        each = 0.05 * (torch.exp(reference - policy) - (reference - policy) - 1) - gain
        loss = {
            "answers": torch.stack([part.mean() for part in each.split(counts)]).mean(),
            "tokens": each.mean(),
            "constant": each.sum() / (len(counts) * 7),
        }[reduction]
        case("grpo", loss, {"policy": policy, "old": old, "reference": reference}, counts=counts,
             advantages=advantages, reduction=reduction, beta=0.05, clip=[0.2, 0.3])  # fmt: skip
    rewards = torch.tensor([1.0, 0.0, 0.5, 2.0, 2.0, 2.0])
    groups = rewards.view(-1, 3)
    centred = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    return {"cases": cases, "advantages": {"rewards": numbers(rewards), "group": 3, "expect": numbers(centred.view(-1))}}


def divergence(p, q, targets, estimator: str) -> torch.Tensor:
    pick = lambda it: it.gather(1, targets[:, None])[:, 0]
    full = lambda p, q: (p.exp() * (p - q)).sum(-1)
    k1 = pick(p) - pick(q)
    if estimator == "js":
        m = torch.logaddexp(p, q) - math.log(2)
        return (full(p, m) + full(q, m)) / 2
    return {
        "full": lambda: full(p, q), "reverse": lambda: full(q, p), "k1": lambda: k1, "k2": lambda: k1**2 / 2,
        "k3": lambda: torch.exp(-k1) + k1 - 1}[estimator]()  # fmt: skip


STEPS = 20


def optimizers() -> dict:
    """Twenty steps of each optimizer on drawn gradients, with schedules, clipping and averages."""
    generator = torch.Generator().manual_seed(20)
    shapes = ((3, 4), (7, 2), (5,))
    start = [torch.randn(*shape, generator=generator) for shape in shapes]
    # Gradients of very different sizes, some of them exactly 0.
    size = lambda step: 10.0 ** (step % 5 - 3)
    gradients = [
        [torch.randn(*shape, generator=generator) * size(step) * (torch.rand(*shape, generator=generator) > 0.2)
         for shape in shapes]
        for step in range(STEPS)
    ]  # fmt: skip
    cases = []
    for name, optimizer, schedule, clip in (
        ("adamw", {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}, {"name": "constant", "warmup": 0}, None),
        ("adamw", {"betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1}, {"name": "cosine", "warmup": 4}, 0.5),
        ("sgd", {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}, {"name": "linear", "warmup": 3}, None),
        ("sgd", {"momentum": 0.9, "nesterov": False, "weight_decay": 0.01}, {"name": "constant", "warmup": 5}, 1.0),
        ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0}, {"name": "wsd", "warmup": 2, "decay": 6}, 1.0),
        ("adafactor", {"eps": [1e-30, 1e-3], "clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None,
                       "weight_decay": 0.0, "scale_parameter": True}, {"name": "constant", "warmup": 0}, None),
        ("adafactor", {"eps": [1e-12, 1e-2], "clip_threshold": 0.7, "decay_rate": -0.6, "beta1": 0.9,
                       "weight_decay": 0.1, "scale_parameter": False}, {"name": "cosine", "warmup": 4}, 0.5),
        ("torch_adafactor", {"beta2_decay": -0.8, "eps": [None, 1e-3], "d": 1.0, "weight_decay": 0.0},
         {"name": "constant", "warmup": 0}, None),
        ("torch_adafactor", {"beta2_decay": -0.5, "eps": [1e-4, 1e-2], "d": 2.0, "weight_decay": 0.1},
         {"name": "linear", "warmup": 3}, 1.0),
        ("muon", {"momentum": 0.95, "nesterov": True, "weight_decay": 0.1, "adjust_lr_fn": "original"},
         {"name": "constant", "warmup": 0}, None),
        ("muon", {"momentum": 0.8, "nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"},
         {"name": "cosine", "warmup": 4}, 1.0),
        ("muon", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "adjust_lr_fn": "spectral_unclamped"},
         {"name": "constant", "warmup": 0}, None),
    ):
        cases.append(steps(start, gradients, name, optimizer, schedule, clip))
    return {"start": [numbers(it) for it in start], "gradients": [[numbers(it) for it in step] for step in gradients],
            "cases": cases}  # fmt: skip


def steps(start, gradients, name: str, options: dict, schedule: dict, clip: float | None) -> dict:
    """One run: learning rates, norms before clipping, and the parameters and averages after some steps."""
    rate, decay = 0.05, 0.9
    parameters = [it.clone().requires_grad_() for it in start]
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "muon": torch.optim.Muon,
            "torch_adafactor": torch.optim.Adafactor, "adafactor": transformers.Adafactor}[name]  # fmt: skip
    # transformers' own default is a rate that follows from the step; Muon is for matrices alone.
    further = {"relative_step": False} if name == "adafactor" else {}
    trained = [it for it in parameters if it.ndim == 2] if name == "muon" else parameters
    optimizer = kind(trained, lr=rate, **options, **further)
    named = "constant_with_warmup" if schedule["name"] == "constant" else schedule["name"]
    if named == "wsd":
        stable = STEPS - schedule["warmup"] - schedule["decay"]
        scheduler = get_wsd_schedule(optimizer, schedule["warmup"], schedule["decay"], num_stable_steps=stable)
    else:
        scheduler = get_scheduler(named, optimizer, schedule["warmup"], STEPS)
    averages = [it.detach().clone() for it in parameters]
    rates, norms, after = [], [], {}
    for step, drawn in enumerate(gradients):
        for parameter, gradient in zip(parameters, drawn):
            parameter.grad = gradient.clone()
        norms.append(number(torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf)))
        rates.append(number(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
        keep = min(decay, (1 + step) / (10 + step))
        averages = [keep * average + (1 - keep) * it.detach() for average, it in zip(averages, parameters)]
        if step + 1 in (1, 7, STEPS):
            after[str(step + 1)] = {
                "parameters": [numbers(it.detach()) for it in parameters],
                "averages": [numbers(it) for it in averages],
            }
    return {"optimizer": {"name": name, **options}, "rate": rate, "schedule": schedule, "clip": clip, "decay": decay,
            "rates": rates, "norms": norms, "after": after}  # fmt: skip


# Name, model, and PEFT's settings.
ADAPTERS = (
    ("lora", "llama", {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]}),
    ("rslora", "qwen3", {"r": 4, "lora_alpha": 5, "use_rslora": True, "target_modules": "all-linear",
                         "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"k_proj": 3}}),
    ("dora", "qwen2", {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": r".*\.(q_proj|up_proj)"}),
    ("embedding", "gemma-5x", {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "o_proj"]}),
    ("moe", "qwen3-moe", {"r": 2, "lora_alpha": 2, "target_modules": ["k_proj"], "layers_to_transform": [1]}),
    ("experts", "qwen3-moe", {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"],
                              "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    ("experts-down", "mixtral", {"r": 3, "lora_alpha": 4, "use_rslora": True, "target_modules": [],
                                 "target_parameters": ["experts.down_proj"]}),
    ("fused", "phi3", {"r": 2, "lora_alpha": 3, "target_modules": ["qkv_proj", "gate_up_proj"]}),
)  # fmt: skip


def adapters(out: pathlib.Path) -> None:
    """Adapters and a soft prompt as PEFT saves them, and what a model says and learns under them."""
    import peft

    versions = _fixture.made_by("torch", "transformers", "peft")
    found = {"made_by": versions, "kind": "adapters", "cases": []}
    for name, of, options in ADAPTERS:
        settings = peft.LoraConfig(task_type="CAUSAL_LM", **options)
        found["cases"].append(adapted(out, f"peft-{name}", of, settings))
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    found["cases"].append(adapted(out, "peft-prompt", "gemma3", settings))
    _fixture.write_json(out / "adapters.json", found, lines_to=2)


def adapted(out: pathlib.Path, name: str, of: str, settings) -> dict:
    import peft

    torch.manual_seed(len(name))
    base = _tiny.load(out.parent / "models" / of).float()
    rng = numpy.random.default_rng([31, len(name)])
    rows, labels = batch_of(rng, base.config.vocab_size)
    with torch.no_grad():
        plain = row_logprobs(logits_of(base, rows), labels, False)
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Adapters begin without effect; magnitudes begin with the rows' lengths.
            if "lora_B" in path or "lora_embedding_A" in path or "prompt" in path:
                parameter.normal_(0, 0.3)
            if "magnitude" in path:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = _fixture.read_json(folder / "adapter_config.json")
    # PEFT writes where the base lies on this machine, and a set in the order of its hashes.
    targets = config.get("target_modules")
    own = {"base_model_name_or_path": of} | ({"target_modules": sorted(targets)} if isinstance(targets, list) else {})
    _fixture.write_json(folder / "adapter_config.json", {**config, **own}, lines_to=1)
    virtual = getattr(settings, "num_virtual_tokens", 0)
    logits = model(input_ids=padded(rows, 0), attention_mask=torch.ones_like(padded(rows, 0)), use_cache=False).logits
    logits = logits[:, virtual:]
    loss = F.cross_entropy(*shifted(logits, labels), ignore_index=IGNORE)
    loss.backward()
    kept_of = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            kept_of[path.replace(".default", "")] = kept(parameter.grad)
    sums = row_logprobs(logits.detach(), labels, False)
    assert (sums - plain).abs().max() > 0.3, (name, sums, plain)
    return {"adapter": name, "model": of, "tokens": rows, "labels": labels, "logprobs": numbers(sums),
            "loss": number(loss.detach()), "gradients": kept_of}  # fmt: skip


def mlx_adapters(out: pathlib.Path) -> None:
    """Adapters as mlx-lm saves them, on dense and packed weights."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm import utils
    from mlx_lm.tuner.utils import linear_to_lora_layers

    import _quantized

    mx.set_default_device(mx.cpu)
    found = {"made_by": _fixture.made_by("mlx", "mlx-lm"), "kind": "adapters", "cases": []}
    for name, of, kind, layers, keys in (
        ("mlx-lora", "qwen2", "lora", 2, ["self_attn.q_proj", "mlp.up_proj"]),
        ("mlx-lora-q4", "llama-q4", "lora", 3, ["self_attn.v_proj"]),
        ("mlx-dora", "qwen3", "dora", 1, ["self_attn.o_proj", "mlp.down_proj"]),
        ("mlx-experts", "qwen3-moe", "lora", 2, ["self_attn.q_proj", "mlp.switch_mlp.up_proj", "mlp.switch_mlp.down_proj"]),
        ("mlx-experts-q4", "qwen3-moe-q4", "lora", 1, ["mlp.switch_mlp.gate_proj"]),
    ):
        mx.random.seed(len(name))
        model, config = utils.load_model(out.parent / "models" / of)
        model.set_dtype(mx.float32)
        rng = numpy.random.default_rng([32, len(name)])
        rows, labels = batch_of(rng, config["vocab_size"])
        # Of some models mlx-lm makes something else than transformers; those are of no use here.
        reference = _quantized.dequantized(out.parent / "models" / of)
        with torch.no_grad():
            expected = row_logprobs(logits_of(reference, rows), labels, False)
        assert torch.allclose(mlx_logprobs(model, rows, labels), expected, rtol=1e-5, atol=1e-4), name
        parameters = {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": keys}
        model.freeze()
        linear_to_lora_layers(model, layers, dict(parameters), use_dora=kind == "dora")
        for path, array in tree_flatten(model.trainable_parameters()):
            if path.endswith("lora_b"):
                model.load_weights([(path, mx.random.normal(array.shape) * 0.2)], strict=False)
            if path.endswith(".m"):
                model.load_weights([(path, array * (mx.random.uniform(shape=array.shape) + 0.5))], strict=False)
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
        saved = {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters}
        (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
        found["cases"].append({"adapter": name, "model": of, "tokens": rows, "labels": labels,
                               "logprobs": numbers(mlx_logprobs(model, rows, labels))})  # fmt: skip
    _fixture.write_json(out / "mlx-adapters.json", found, lines_to=2)


def mlx_logprobs(model, rows, labels) -> torch.Tensor:
    import mlx.core as mx

    logits = model(mx.array(padded(rows, 0).numpy())).astype(mx.float32)
    return row_logprobs(torch.from_numpy(numpy.array(logits)), labels, False)
