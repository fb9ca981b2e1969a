"""`mlx_lm.convert` without what it does to a tokenizer: our tiny models have none."""

import pathlib

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm import utils
from mlx_lm.convert import MODEL_CONVERSION_DTYPES, mixed_quant_predicate_builder

import _quantized  # noqa: F401  (lets mlx-lm 0.32.2 run its experts with mlx 0.32.2)


def convert(source: pathlib.Path, folder: pathlib.Path, step: dict) -> None:
    """Converts `source` into `folder`.

    `step` has the flags of `mlxgk convert` as keys: `dtype`, `mode`, `bits`, `group-size`, `recipe`,
    `dequantize`. The order of things is that of mlx-lm's own function.
    """
    mx.set_default_device(mx.cpu)
    model, config = utils.load_model(source, lazy=True)
    predicate = None
    if "recipe" in step:
        predicate = mixed_quant_predicate_builder(step["recipe"], model, step.get("group-size"))
    dtype = step.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
    if dtype in MODEL_CONVERSION_DTYPES:
        may_cast = getattr(model, "cast_predicate", lambda _: True)

        def cast(path, array):
            is_cast = may_cast(path) and mx.issubdtype(array.dtype, mx.floating)
            return array.astype(getattr(mx, dtype)) if is_cast else array

        model.update(tree_map_with_path(cast, model.parameters()))
    if "dequantize" in step:
        config.pop("quantization", None)
        config.pop("quantization_config", None)
        model = utils.dequantize_model(model)
    elif any(key in step for key in ("bits", "mode", "recipe")):
        group, bits, mode = step.get("group-size"), step.get("bits"), step.get("mode", "affine")
        model, config = utils.quantize_model(model, config, group, bits, mode=mode, quant_predicate=predicate)
    utils.save_model(folder, model)
    utils.save_config(config, folder / "config.json")


def flags(step: dict) -> list[str]:
    """The same step on our command line."""
    return [it for key, value in step.items() for it in ([f"--{key}"] if value is True else [f"--{key}", str(value)])]
