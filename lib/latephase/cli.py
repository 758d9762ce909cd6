"""The command line: `latephase diagnose CHECKPOINT --model package.module:factory --data FILE.npz`.

Prints a table of the late-phase measures of a trained network, and writes them as JSON and as a
figure where asked. Exit codes: 0 done, 2 the input cannot be used, 130 interrupted; nothing is
written unless everything was computed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import operator
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from latephase.files import plain_arrays, write_whole
from latephase.weights import fitting, listed, read_weights

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
    one.add_argument(
        "--data",
        required=True,
        type=Path,
        help=".npz or .safetensors with x [n, ...] and y [n]; or a folder of pictures, with one "
        "folder for each class",
    )
    one.add_argument("--inputs", default="x", help="what x is called in the file; x if not given")
    one.add_argument("--labels", default="y", help="what y is called in the file; y if not given")
    one.add_argument(
        "--transform",
        help="package.module:name of what makes tensors of the pictures, or of its class",
    )
    one.add_argument(
        "--loss",
        help="exponential, logistic or cross_entropy; if not given, exponential for one output "
        "and cross_entropy for several",
    )
    one.add_argument(
        "--degree", type=float, help="degree of homogeneity, taken as it is; measured if not given"
    )
    one.add_argument("--batch-size", type=int, help="256, less for large inputs, if not given")
    one.add_argument("--device", default="cpu")
    one.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write everything measured here; - for the standard output",
    )
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
    x, y = read_data(options.data, options.inputs, options.labels, options.transform)
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
    # The standard output is one or the other.
    to_output = options.json == Path("-")
    print(_table(found), file=sys.stderr if to_output else sys.stdout)
    if options.json:
        about = {n: str(getattr(options, n)) for n in ("checkpoint", "model", "data")}
        row = {**about, **json.loads(found.to_json())}
        text = json.dumps(row, indent=1, ensure_ascii=False, allow_nan=False)
        if to_output:
            print(text)
        else:
            _write(options.json, lambda stream: stream.write(f"{text}\n".encode()))
    if options.figure:
        _write(options.figure, lambda stream: _draw(found, stream, options.figure.suffix))
    return 0


# What comes in.


def read_data(
    path: Path, inputs: str = "x", labels: str = "y", transform: str | None = None
) -> tuple[Any, Any]:
    """Return x and y of an .npz or .safetensors, by name; or the data set of a folder, and None.

    In the folder each class has a folder of its own, in the order of their names; torchvision reads
    the pictures as RGB, in [0, 1], or as the transform package.module:name has them. Nothing is
    unpickled. Raises ValueError or OSError naming the path.
    """
    if path.is_dir():
        return _pictures(path, transform)
    if not path.is_file():
        raise ValueError(f"{path}: no such data file")
    if transform is not None:
        raise ValueError(f"--transform: expected a folder of pictures as --data, got {path}")
    found = read_weights(path) if path.suffix == ".safetensors" else None
    if found is None:
        found = plain_arrays(path, {inputs, labels})
    if not {inputs, labels} <= found.keys():
        raise ValueError(f"{path}: expected {inputs!r} and {labels!r}; got {listed(found)}")
    return found[inputs], found[labels]


def _pictures(folder: Path, transform: str | None) -> tuple[Any, Any]:
    try:
        from torchvision import datasets, transforms
    except ImportError as error:
        raise ValueError(
            f"{folder}: a folder of pictures needs torchvision: pip install 'latephase[images]'"
        ) from error
    change = transforms.ToTensor() if transform is None else _imported("--transform", transform)
    # A class, such as the transforms of torchvision's weights, makes one.
    try:
        change = change() if isinstance(change, type | functools.partial) else change
    except Exception as error:
        raise ValueError(
            f"--transform: {transform!r} makes nothing without arguments: {error}"
        ) from error
    if not callable(change):
        raise ValueError(f"--transform: expected a function of a picture, got {change!r}")
    return datasets.ImageFolder(folder, change), None


def _imported(option: str, place: str) -> Any:
    """Return what package.module:name stands for, with dots in the name; here is searched too."""
    where, separator, name = place.partition(":")
    if not (where and separator and name):
        expected = "package.module:factory" if option == "--model" else "package.module:name"
        raise ValueError(f"{option}: expected {expected}, got {place!r}")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return operator.attrgetter(name)(importlib.import_module(where))
    except Exception as error:
        raise ValueError(
            f"{option}: {place!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def make_module(factory: str, arguments: str):
    """Return what package.module:factory makes of keyword arguments given as JSON.

    The current folder is searched for the package too. Raises ValueError where there is no such
    factory, where it raises, or where it makes no torch.nn.Module.
    """
    try:
        keywords = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise ValueError(f"--arguments: not JSON: {error}") from error
    if not isinstance(keywords, dict):
        raise ValueError(f"--arguments: expected a JSON object of keywords, got {arguments}")
    maker: Callable = _imported("--model", factory)
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
    given = options.checkpoint.resolve(), options.data.resolve()
    for path in (options.json, options.figure):
        if path is not None and path.resolve() in given:
            raise ValueError(f"{path}: expected a file to write that is not among those to read")
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.absolute().parent}")
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: expected a file to write, got a folder")
    if options.figure and options.figure.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"--figure: expected .svg, .png or .pdf, got {str(options.figure)!r}")
    if options.figure and importlib.util.find_spec("seaborn") is None:
        raise ValueError(
            "--figure: needs seaborn, which is not installed: pip install 'latephase[plot]'"
        )


def _table(found) -> str:
    width = max(map(len, _SCALARS.values()))
    rows = [f"{label:<{width}}  {_number(found, name)}" for name, label in _SCALARS.items()]
    layers = found.layers.drop(columns="shape").to_string(
        index=False, float_format="%.4g", na_rep="—"
    )
    return "\n".join([*rows, "", layers])


def _number(found, name: str) -> str:
    value = getattr(found, name)
    if value is None or not math.isfinite(value):
        return f"—  ({found.missing.get(name, 'not finite')})"
    error = found.alignment_error if name == "alignment" else None
    return f"{value:.6g}" + (f" ± {error:.1g}" if error and error > 1e-6 * abs(value) else "")


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
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
