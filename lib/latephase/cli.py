"""The command line: `latephase diagnose CHECKPOINT --model package.module:factory --data FILE.npz`.

Prints a table of the late-phase measures of a trained network, and writes them as JSON and as a
figure where asked. Exit codes: 0 done, 2 the input cannot be used, 130 interrupted; nothing is
written unless everything was computed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from latephase.files import plain_arrays, write_whole
from latephase.weights import fitting, read_weights

USAGE, INTERRUPTED = 2, 130
_SCALARS = {
    "smoothed_margin": "smoothed margin α",
    "log_norm": "ln ‖W‖",
    "degree": "degree L",
    "homogeneity_defect": "defect of homogeneity",
    "normalized_margin": "normalized margin",
    "normalized_smoothed_margin": "normalized smoothed margin γ̃",
    "alignment": "alignment cos(W, −∇R)",
    "kkt_stationarity": "KKT residual ε",
    "kkt_complementarity": "KKT residual δ",
    "training_error": "training error",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors go to the standard error."""
    options = _parser().parse_args(words)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"latephase: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("latephase: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latephase", description=__doc__.split("\n\n")[0])
    version = importlib.metadata.version("latephase")
    parser.add_argument("--version", action="version", version=f"latephase {version}")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("diagnose", help="measure a trained network", description=__doc__)
    one.add_argument(
        "checkpoint",
        type=Path,
        help="weights: .safetensors, a folder of several with their index, or .pt, .pth, .bin, "
        ".ckpt, .tar, of which nothing is unpickled but tensors",
    )
    one.add_argument(
        "--key", help="the dictionary in the checkpoint, as state_dict; found if only one fits"
    )
    one.add_argument(
        "--prefix", help="what stands before the module's names, as model; found if only one fits"
    )
    one.add_argument(
        "--model", required=True, help="package.module:factory, which makes the module"
    )
    one.add_argument("--arguments", default="{}", help="keyword arguments of the factory, as JSON")
    one.add_argument("--data", required=True, type=Path, help=".npz with arrays x [n, ...], y [n]")
    one.add_argument(
        "--loss",
        help="exponential, logistic or cross_entropy; if not given, exponential for one output "
        "and cross_entropy for several",
    )
    one.add_argument(
        "--degree", type=float, help="degree of homogeneity, taken as it is; measured if not given"
    )
    one.add_argument("--batch-size", type=int, default=256)
    one.add_argument("--device", default="cpu")
    one.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    one.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw to .svg, .png or .pdf; needs the extra `plot`",
    )
    one.set_defaults(run=_diagnose)
    return parser


def _diagnose(options: argparse.Namespace) -> int:
    _check_outputs(options)
    content = read_weights(options.checkpoint)
    x, y = read_data(options.data)
    module = make_module(options.model, options.arguments)

    import torch

    from latephase.measures.diagnosis import diagnose

    try:
        weights, place = fitting(content, module, options.key, options.prefix)
        module.load_state_dict(weights, strict=False)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{options.checkpoint}: does not fit {options.model}: {error}") from error
    print(f"latephase: weights from {place} of {options.checkpoint}", file=sys.stderr)
    try:
        module.to(torch.device(options.device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {options.device!r} cannot be used: {error}") from error
    found = diagnose(module, x, y, options.loss, options.degree, options.batch_size)
    print(_table(found))
    if options.json:
        about = {n: str(getattr(options, n)) for n in ("checkpoint", "model", "data")}
        row = {**about, **json.loads(found.to_json())}
        text = json.dumps(row, indent=1, ensure_ascii=False, allow_nan=False)
        _write(options.json, lambda stream: stream.write(f"{text}\n".encode()))
    if options.figure:
        _write(options.figure, lambda stream: _draw(found, stream, options.figure.suffix))
    return 0


# What comes in.


def read_data(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return x [n, ...] and y [n] from an .npz without pickled objects; ValueError otherwise."""
    if not path.is_file():
        raise ValueError(f"{path}: no such data file")
    found = plain_arrays(path, {"x", "y"})
    return found["x"], found["y"]


def make_module(factory: str, arguments: str):
    """Return what package.module:factory makes of keyword arguments given as JSON.

    The current folder is searched for the package too. Raises ValueError where there is no such
    factory, where it raises, or where it makes no torch.nn.Module.
    """
    where, separator, name = factory.partition(":")
    if not (where and separator and name):
        raise ValueError(f"--model: expected package.module:factory, got {factory!r}")
    try:
        keywords = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise ValueError(f"--arguments: not JSON: {error}") from error
    if not isinstance(keywords, dict):
        raise ValueError(f"--arguments: expected a JSON object of keywords, got {arguments}")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        maker: Callable = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model: {factory!r} cannot be imported: {error}") from error
    try:
        module = maker(**keywords)
    except Exception as error:
        raise ValueError(
            f"--model: {factory!r} with {keywords} raised {type(error).__name__}: {error}"
        ) from error
    import torch

    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"--model: {factory!r} made a {type(module).__name__}, no torch.nn.Module")
    return module


# What goes out.


def _check_outputs(options: argparse.Namespace) -> None:
    if options.json and options.figure and options.json.absolute() == options.figure.absolute():
        raise ValueError(f"--json and --figure: expected two files, got {options.json} twice")
    for path in (options.json, options.figure):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.absolute().parent}")
    if options.figure and options.figure.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"--figure: expected .svg, .png or .pdf, got {str(options.figure)!r}")
    if options.figure and importlib.util.find_spec("seaborn") is None:
        raise ValueError(
            "--figure: needs seaborn, which is not installed: pip install 'latephase[plot]'"
        )


def _table(found) -> str:
    width = max(map(len, _SCALARS.values()))
    rows = [f"{label:<{width}}  {_number(getattr(found, n))}" for n, label in _SCALARS.items()]
    layers = found.layers.drop(columns="shape").to_string(
        index=False, float_format="%.4g", na_rep="—"
    )
    return "\n".join([*rows, "", layers])


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "—  (not defined for this network, its margins or its precision)"
    return f"{value:.6g}"


def _draw(found, stream: BinaryIO, kind: str) -> None:
    import matplotlib

    matplotlib.use("agg")

    from latephase.figures import plots

    plots.style()
    found.plot().savefig(stream, format=kind[1:])


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    try:
        write_whole(path, write)
    except OSError as error:
        raise OSError(error.strerror) from error
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
