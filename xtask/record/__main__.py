"""Records the golden files from the references: `cargo xtask record [AREA ...]`.

Every module beside this one that defines `record(out)` is an area, named like the module. Its
`record` receives the folder `fixtures/<area>` and writes there; `models` goes first, because other
areas read its folders. The files are described in `fixtures/README.md`.
"""

import argparse
import importlib
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# The references must not reach for a network, and one thread keeps sums in one order.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def areas() -> list[str]:
    """The names of the areas found beside this file, `models` first."""
    names = [path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_")]
    return sorted(names, key=lambda name: (name != "models", name))


def main() -> None:
    known = areas()
    parser = argparse.ArgumentParser(prog="cargo xtask record", description=__doc__)
    parser.add_argument("area", nargs="*", help=f"what to record (default: all of {', '.join(known)})")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent.parent / "fixtures")
    arguments = parser.parse_args()

    unknown = [name for name in arguments.area if name not in known]
    if unknown:
        parser.error(f"no area named {', '.join(unknown)}; there are {', '.join(known)}")
    for name in [it for it in known if not arguments.area or it in arguments.area]:
        started = time.monotonic()
        out = arguments.out.resolve() / name
        out.mkdir(parents=True, exist_ok=True)
        importlib.import_module(name).record(out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(f"{name}: {time.monotonic() - started:.1f} s, {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
