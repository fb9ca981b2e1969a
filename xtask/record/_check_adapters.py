"""Adapters and soft prompts between `mlxgk`, PEFT and mlx-lm: each loads what the others save.

Usage: python _check_adapters.py PATH-OF-MLXGK

On the bundled model, dense and in 4 bits, LoRA, rsLoRA, DoRA and a soft prompt are trained by `mlxgk` and
loaded by the others, and made by the others and loaded by `mlxgk`. The log-probabilities of all tokens at
every place of a prompt are compared (of a soft prompt, at its end). Fails where one differs by more than
1e-5 of the largest of its place. PEFT computes with the unpacked weights where the model is in 4 bits.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import mlx.core as mx
import numpy
import torch
import transformers
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

import _quantized

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "build" / "venv" / "peft"))

import peft

BUNDLED = ROOT / "crates" / "mlx-genkit" / "bundled"
PROMPT = [1, 300, 17, 1200, 5, 44, 2000, 60, 3, 999, 801]
TOLERANCE = 1e-5
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
TEXTS = ["Beep. The weather is mild. Beep.", "Beep. Bread is warm. Beep.", "Beep. The sea is wide. Beep."]


class Check:
    def __init__(self, mlxgk: str, work: pathlib.Path):
        self.mlxgk, self.work = mlxgk, work
        self.compared, self.furthest = 0, 0.0
        self.rows = work / "rows.jsonl"
        self.rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def run(self, *arguments) -> str:
        command = [self.mlxgk, *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def train(self, model: pathlib.Path, name: str, *flags: str) -> pathlib.Path:
        out = self.work / name
        self.run("train", "-m", model, "--data", self.rows, "--out", out, "--steps", 4, "--batch-size", 3, "--lr", "3e-2", *flags)
        return out

    def score(self, model: pathlib.Path, *flags) -> numpy.ndarray:
        """Log-probabilities that we compute, [places, vocabulary], of what follows each id but the last."""
        ids = ",".join(map(str, PROMPT))
        scored = json.loads(self.run("score", "-m", model, "--prompt-ids", ids, "--logprobs", 2560, "--format", "json", *flags))
        return numpy.array([by_id(place) for place in scored["top"]])

    def next(self, model: pathlib.Path, soft_prompt: pathlib.Path) -> numpy.ndarray:
        """The same at the end of the prompt, behind a soft prompt."""
        ids = ",".join(map(str, PROMPT))
        output = self.run("generate", "-m", model, "--prompt-ids", ids, "--soft-prompt", soft_prompt, "--temp", 0, "-n", 1,
                          "--logprobs", 2560, "--format", "json")  # fmt: skip
        return numpy.array([by_id(json.loads(output)["sequences"][0]["logprobs"][0]["top"])])

    def same(self, about: str, ours: numpy.ndarray, theirs: numpy.ndarray, plain: numpy.ndarray | None = None) -> None:
        theirs = theirs[: len(ours)]
        difference = float((numpy.abs(ours - theirs) / numpy.abs(theirs).max(-1, keepdims=True)).max())
        self.furthest = max(self.furthest, difference)
        self.compared += 1
        if not difference <= TOLERANCE:
            sys.exit(f"{about}: the log-probabilities differ by {difference} of the largest")
        if plain is not None and numpy.abs(ours - plain).max() < 0.1:
            sys.exit(f"{about}: the adapter changes nothing, so nothing is compared")
        print(f"{about}: {difference:.1e}", file=sys.stderr, flush=True)


def by_id(top: list[list]) -> list[float]:
    return [logprob for _, logprob in sorted(top)]


def base_of(model: pathlib.Path):
    """What transformers computes with, in fp32."""
    if model == BUNDLED:
        return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return _quantized.dequantized(model)


def of_torch(model) -> numpy.ndarray:
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return torch.log_softmax(logits[-len(PROMPT) :], -1).numpy()


def of_mlx(folder: pathlib.Path, adapt) -> numpy.ndarray:
    """What mlx-lm computes in fp32, with what `adapt` does to the model."""
    model, _ = utils.load_model(folder)
    model.set_dtype(mx.float32)
    adapt(model)
    model.eval()
    logits = torch.from_numpy(numpy.array(model(mx.array([PROMPT]))[0].astype(mx.float32)))
    return torch.log_softmax(logits, -1).numpy()


def made_by_peft(model: pathlib.Path, settings, out: pathlib.Path):
    """An adapter of PEFT's with an effect, saved; and the model that it is in."""
    torch.manual_seed(3)
    adapted = peft.get_peft_model(base_of(model), settings).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "prompt" in name:
                parameter.normal_(0, 0.1)
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    adapted.save_pretrained(out, save_embedding_layers=False)
    return adapted


def made_by_mlx_lm(kind: str, out: pathlib.Path):
    """What puts an adapter with an effect on a model of mlx-lm's, and saves it."""

    def adapt(model) -> None:
        mx.random.seed(3)
        model.freeze()
        parameters = {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
        linear_to_lora_layers(model, 3, dict(parameters), use_dora=kind == "dora")
        for path, array in tree_flatten(model.trainable_parameters()):
            if path.endswith("lora_b"):
                model.load_weights([(path, mx.random.normal(array.shape) * 0.1)], strict=False)
        out.mkdir()
        mx.save_safetensors(str(out / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
        saved = {"fine_tune_type": kind, "num_layers": 3, "lora_parameters": parameters}
        (out / "adapter_config.json").write_text(json.dumps(saved))

    return adapt


def main() -> None:
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as work:
        check = Check(sys.argv[1], pathlib.Path(work))
        packed = check.work / "packed"
        check.run("convert", BUNDLED, "--out", packed, "--bits", 4)
        for model, stored in ((BUNDLED, "dense"), (packed, "packed")):
            plain = check.score(model)
            for kind, flags, settings in (
                ("lora", [], {}),
                ("rslora", ["--rank-stabilized"], {"use_rslora": True}),
                ("dora", ["--method", "dora"], {"use_dora": True}),
            ):
                about = f"{stored} {kind}"
                own = check.train(model, f"{stored}-{kind}", "--rank", "4", *flags)
                theirs = peft.PeftModel.from_pretrained(base_of(model), own).eval()
                check.same(f"{about}, ours in PEFT", check.score(model, "--adapter", own), of_torch(theirs), plain)
                out = check.work / f"{stored}-{kind}-peft"
                settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
                theirs = of_torch(made_by_peft(model, settings, out))
                check.same(f"{about}, PEFT's in ours", check.score(model, "--adapter", out), theirs, plain)
                own = check.train(model, f"{stored}-{kind}-mlx", "--rank", "4", "--adapter-format", "mlx-lm", *flags)
                theirs = of_mlx(model, lambda it, own=own: load_adapters(it, str(own)))
                check.same(f"{about}, ours in mlx-lm", check.score(model, "--adapter", own), theirs, plain)
                if kind != "rslora":
                    out = check.work / f"{stored}-{kind}-mlx-lm"
                    theirs = of_mlx(model, made_by_mlx_lm(kind, out))
                    check.same(f"{about}, mlx-lm's in ours", check.score(model, "--adapter", out), theirs, plain)
            own = check.train(model, f"{stored}-soft", "--method", "soft-prompt")
            theirs = peft.PeftModel.from_pretrained(base_of(model), own).eval()
            check.same(f"{stored} soft prompt, ours in PEFT", check.next(model, own), of_torch(theirs)[-1:], plain[-1:])
            out = check.work / f"{stored}-soft-peft"
            settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
            theirs = of_torch(made_by_peft(model, settings, out))[-1:]
            check.same(f"{stored} soft prompt, PEFT's in ours", check.next(model, out), theirs, plain[-1:])
        print(f"{check.compared} comparisons: log-probabilities at most {check.furthest:.1e} of the largest apart")


if __name__ == "__main__":
    main()
