"""What every recording script needs: versions, compact JSON, rounding."""

import importlib.metadata
import json
import os
import pathlib


def made_by(*packages: str) -> dict[str, str]:
    """The versions a fixture was made with, for its `made_by` field."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in packages}


def read_json(path: pathlib.Path):
    """A fixture read back."""
    return json.loads(path.read_text(encoding="utf-8"))


def rounded(values, digits: int = 6):
    """Nested lists of floats from a tensor or array, rounded far below any tolerance."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, list):
        return [rounded(it, digits) for it in values]
    # Adding zero turns -0.0 into 0.0.
    return round(values, digits) + 0.0


def write_json(path: pathlib.Path, value, lines_to: int = 2) -> None:
    """Writes `value` as JSON that diffs well: one line per entry down to depth `lines_to`."""

    def text(it, depth: int) -> str:
        if depth < lines_to and isinstance(it, (dict, list)) and it:
            inner = "  " * (depth + 1)
            if isinstance(it, dict):
                entries = [f"{json.dumps(key)}: {text(sub, depth + 1)}" for key, sub in it.items()]
            else:
                entries = [text(sub, depth + 1) for sub in it]
            begin, end = "{}" if isinstance(it, dict) else "[]"
            return begin + "\n" + ",\n".join(inner + entry for entry in entries) + "\n" + "  " * depth + end
        return json.dumps(it, separators=(",", ":"), ensure_ascii=False)

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text(value, 0) + "\n", encoding="utf-8")
    os.replace(temporary, path)
