"""Weights out of checkpoints as they are found, of which nothing is executed, for a given module.

A file is read as nested dictionaries of tensors; `fitting` finds the one dictionary in it whose
names and shapes are the module's, and what stands before each name (`module.`, `model.`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
# Where training programs keep a state_dict; other names are taken where only one fits.
_USUAL = ("", "state_dict", "model", "model_state_dict", "net")
# How a file begins that Git LFS has not fetched.
_POINTER = b"version https://git-lfs"
# Put into names by torch.compile, and by what wraps modules for FSDP and activation checkpoints.
_WRAPPED = re.compile(r"_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")


class _Inert:
    """Stands for an object beside the weights; takes whatever it is made of and keeps nothing."""

    def __init__(self, *content: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What training programs put beside the weights: read as `_Inert`, so that these are not made.
_HARMLESS = (
    "argparse.Namespace",
    "datetime.datetime",
    "datetime.timedelta",
    *("numpy.dtype", "numpy.ndarray"),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"pathlib.{sub}{os}Path" for sub in ("", "_local.") for os in ("Posix", "Windows")),
    "torch.torch_version.TorchVersion",
)


def read_weights(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, in nested dictionaries; nothing in it is ever executed.

    .safetensors holds nothing but tensors; a folder, or its index, is that of a model in several
    files. A .pt, .pth, .bin, .ckpt or .tar file is read by PyTorch's restricted reader, which makes
    tensors and containers; a few harmless objects are passed over, and every other is refused.
    Raises ValueError or OSError naming the file.
    """
    if path.is_dir() or path.name.endswith(".index.json"):
        return _sharded(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    with open(path, "rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path}: a pointer of Git LFS; expected the file that it stands for")
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    if path.suffix not in _PICKLED:
        raise ValueError(
            f"{path}: expected .safetensors, {', '.join(_PICKLED)} or a folder, got {path.suffix!r}"
        )
    content = _restricted(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected tensors by name, as module.state_dict() gives them; got "
            f"{type(content).__name__}"
        )
    return content


def _restricted(path: Path) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        said = str(error)
        refused = re.search(r"GLOBAL (\S+)", said)
        why = said.splitlines()[0].split(". ")[0] if " " in said else type(error).__name__
        if refused:
            why = f"it holds {refused[1]}"
        elif "TorchScript" in said:
            why = "it is a TorchScript archive, which is a program"
        elif "Weights only load failed" in said:
            why = "PyTorch's restricted reader refuses it"
        raise ValueError(
            f"{path}: not a file of tensors only ({why}); objects are never unpickled. Save "
            "module.state_dict(), best with safetensors.torch.save_file"
        ) from error


def _sharded(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a model in several safetensors files, by its index."""
    found = [path] if path.is_file() else sorted(path.glob("*.safetensors.index.json"))
    whole = sorted(path.glob("*.safetensors"))
    if not found and len(whole) == 1:
        return read_weights(whole[0])
    if len(found) != 1 or not found[0].is_file():
        raise ValueError(
            f"{path}: expected a folder with one .safetensors file or one .safetensors.index.json, "
            f"got {len(whole)} and {len(found)}"
        )
    index = found[0]
    try:
        names = dict(json.loads(index.read_text(encoding="utf8"))["weight_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{index}: expected JSON with a weight_map; {type(error).__name__}: {error}"
        ) from error
    content = {}
    for file in sorted(set(map(str, names.values()))):
        if Path(file).name != file or Path(file).suffix != ".safetensors":
            raise ValueError(f"{index}: expected .safetensors files beside it, got {file!r}")
        content |= read_weights(index.parent / file)
    if absent := names.keys() - content.keys():
        raise ValueError(f"{index}: its files lack {listed(sorted(absent))}")
    return content


def fitting(
    content: dict[str, Any],
    module: nn.Module,
    key: str | None = None,
    prefix: str | None = None,
) -> tuple[dict[str, Tensor], str]:
    """Return (the tensors by the module's names, where they stood) of a checkpoint's content.

    key: the dictionary to take, names joined by dots; prefix: what stands before each name. Without
    them the whole file, `state_dict`, `model`, `model_state_dict` or `net` is taken where exactly
    one of these fits, any other where it alone fits; and so is the prefix, beside which there may
    be other tensors. A name may be missing of a tensor that the module has under several.

    Raises ValueError where none fits, saying what is missing, or several do.
    """
    import torch

    found = dict(_tensors(content))
    if key is not None:
        if key not in found:
            raise ValueError(f"--key: expected one of {listed(found)}; got {key!r}")
        found = {key: found[key]}
    if not found:
        raise ValueError("expected tensors by name, as module.state_dict() gives them; got none")
    wanted = {
        _WRAPPED.sub("", name): tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if torch.is_tensor(tensor)
    }
    asked = None if prefix is None else [f"{prefix.removesuffix('.')}." if prefix else ""]
    places = [
        _Place(path, head, {n[len(head) :]: t for n, t in tensors.items() if n.startswith(head)})
        for path, tensors in found.items()
        for head in asked or _heads(tensors, wanted)
    ]
    fits = [place for place in places if not _misfit(place.tensors, wanted)]
    fits = [place for place in fits if place.path in _USUAL] or fits
    if len(fits) > 1:
        raise ValueError(
            f"several fit, {' and '.join(map(str, fits))}: choose by --key or --prefix"
        )
    if not fits:
        near = max(places, key=lambda place: len(place.tensors.keys() & wanted.keys()))
        raise ValueError(f"{near}: {_misfit(near.tensors, wanted)}")
    real = {_WRAPPED.sub("", name): name for name in module.state_dict()}
    return {real[name]: tensor for name, tensor in fits[0].tensors.items()}, str(fits[0])


class _Place(NamedTuple):
    path: str
    head: str
    tensors: dict[str, Tensor]

    def __str__(self) -> str:
        inside = f"{self.path!r}" if self.path else "the whole file"
        return inside + (f" after {self.head!r}" if self.head else "")


def _tensors(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (path, tensors) of a dictionary with tensors by name, and of those in it."""
    import torch

    rest, seen = [("", content)], set()
    for path, one in rest:
        named = {name: value for name, value in one.items() if isinstance(name, str)}
        if own := {_WRAPPED.sub("", n): v for n, v in named.items() if torch.is_tensor(v)}:
            yield path, own
        for name, value in named.items():
            # A dictionary may lie in several places of a file, and within itself.
            if isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                rest.append((f"{path}.{name}" if path else name, value))


def _heads(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Return what may stand before the names: "", and what stands before one of the module's."""
    for name in wanted:
        heads = {found.removesuffix(name) for found in tensors if found.endswith(f".{name}")}
        if heads:
            return ["", *sorted(heads)]
    return [""]


def _misfit(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Return how tensors differ from the wanted ones in names and shapes, "" for not at all."""
    import torch

    shared = [name for name in wanted if name in tensors]
    held = {id(wanted[name]): name for name in shared}
    # One of the names is enough for a tensor with several; some versions count no batches.
    missing = [
        name
        for name, tensor in wanted.items()
        if id(tensor) not in held and not name.endswith("num_batches_tracked")
    ]
    unknown = [name for name in tensors if name not in wanted]
    if missing or unknown:
        return f"missing {listed(missing)}, not in the module {listed(unknown)}"
    for name in shared:
        here, there = tensors[name], wanted[name]
        # A lazy module has no shapes yet.
        if not torch.nn.parameter.is_lazy(there) and here.shape != there.shape:
            return f"{name!r} has shape {list(here.shape)}, in the module {list(there.shape)}"
        quantized = here.is_quantized and not there.is_quantized
        if here.is_meta or quantized or here.layout != there.layout:
            return f"{name!r} is no dense tensor of numbers"
        if here.is_complex() or here.is_floating_point() != there.is_floating_point():
            return f"{name!r} is of {here.dtype}, in the module of {there.dtype}"
        if held[id(there)] != name and not torch.equal(here, tensors[held[id(there)]]):
            return f"{name!r} and {held[id(there)]!r} differ, and are one tensor of the module"
    return ""


def listed(names) -> str:
    """Return up to five names in quotes, "none" for no names."""
    names = list(names)
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "") if names else "none"
