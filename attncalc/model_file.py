"""Model files: one .safetensors, a JSON header, no code in it.

The header (the file's metadata entry "attncalc") holds

    {"format": 1, "network": name, "config": {...}, "pair_terms": [{"name", "config"}, ...],
     "species": [Z, ...], "reference_energies": [eV, ...], "scale": [...], "dtype": "float32",
     "units": {...}, "training": {...}, "checks": {"sha256": ...}}

or, for a committee, "members": [{...}, ...] with the entries from "network" to "dtype" of every
member (tensors are then called "members.0.network..." and so on),

so that the file rebuilds its potential by itself. Loading reads numbers and JSON: it can execute
nothing. The table of network names below is the only one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from attncalc.nn.equiformer import Equiformer, EquiformerConfig
from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.nn.so3krates_sphc import So3kratesSphc, So3kratesSphcConfig
from attncalc.one_line import one_line
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Committee, Potential

FORMAT = 1
UNITS = {"energy": "eV", "length": "Angstrom"}

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "so3krates": (So3krates, So3kratesConfig),
    "so3krates-sphc": (So3kratesSphc, So3kratesSphcConfig),
    "equiformer": (Equiformer, EquiformerConfig),
}
PAIR_TERMS: dict[str, tuple[type[nn.Module], type]] = {"zbl": (ZBLRepulsion, ZBLConfig)}

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_STORED = ("F32", "F64")  # the same in the words of safetensors

# Bounds on what a file can make the loader do; models are far below them.
LARGEST_FILE = 1 << 32  # bytes
LARGEST_HEADER = 1 << 22  # bytes
DEEPEST_HEADER = 32  # lists and dictionaries inside each other
MOST_PAIR_TERMS = 100

# What a header says of a potential, or of each member of a committee.
DESCRIPTION: dict[str, type] = {
    "network": str,
    "config": dict,
    "pair_terms": list,
    "species": list,
    "reference_energies": list,
    "scale": list,
    "dtype": str,
}

# What people call .safetensors by mistake, by its first bytes.
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, as torch.save and numpy.savez write",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x89HDF": "HDF5",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"{": "JSON",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
}


def save(potential: Potential, path: str | Path) -> None:
    """Write a potential to one file, atomically: a reader never sees half of it.

    Tensors are stored in the dtype they have, so that loading gives the same bits back.

    Raises:
        ValueError: a reference energy, scale or hyper-parameter is not finite.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(potential).items()}
    if isinstance(potential, Committee):
        description = {"members": [_description(member) for member in potential.members]}
    else:
        description = _description(potential)
    header = {
        "format": FORMAT,
        **description,
        "units": UNITS,
        # JSON has no NaN; an error that was not finite must not make the weights unreadable
        "training": _without_nan(potential.training_info),
    }
    # as it will be read: JSON turns keys into strings and tuples into lists
    header = json.loads(json.dumps(header, allow_nan=False))
    header["checks"] = {"sha256": _checksum(header, tensors)}
    _check_header(header)  # what `load` would refuse must not be written
    content = safetensors_bytes(tensors, metadata={"attncalc": json.dumps(header)})
    write_atomically(path, content)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the complete new one, never half."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    threads: int = 1,
) -> Potential:
    """Read a potential from a model file.

    Args:
        model: the name of a shipped model (see `shipped_models`) or the path of a model file.
        device: where its tensors go.
        dtype: "float32" or "float64" for the network; None for the model's own.
        threads: that compiled steps on a CPU take for a large structure.

    Returns:
        A potential whose parameters do not require gradients.

    Raises:
        FileNotFoundError: there is neither a shipped model nor a file of this name.
        ValueError: the file is not an intact model file of this format, `dtype` is unknown, or
            there are no threads.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    path = find_model(model)
    try:
        header, tensors = _read(path)
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
            potential = _build(header, tensors)
        _fill(potential, tensors)
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None
    members = potential.members if isinstance(potential, Committee) else [potential]
    for member, description in zip(members, descriptions(header), strict=True):
        member.compute_in(DTYPES[dtype or description["dtype"]])
    potential.take_threads(threads)
    return potential.to(device).requires_grad_(False).eval()


def header(model: str | Path) -> dict[str, Any]:
    """The JSON header of a model file, without building the potential; errors as in `load`."""
    path = find_model(model)
    try:
        return _read(path)[0]
    except ValueError as error:
        raise ValueError(one_line(f"{path.name}: {error}")) from None


def checksum(model: str | Path) -> str:
    """By which one model is told from another, whatever its name; errors as in `load`."""
    return header(model)["checks"]["sha256"]


def descriptions(header: dict[str, Any]) -> list[dict[str, Any]]:
    """What a header says of each member of a committee, or of the one potential it describes."""
    return header.get("members", [header])


def find_model(model: str | Path) -> Path:
    """The file of a shipped name or path.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = Path(model)
    if path.is_file():
        return path
    shipped = shipped_models()
    if str(model) in shipped:
        return shipped[str(model)]
    names = ", ".join(sorted(shipped)) or "none"
    # Path("") is the current folder, and a pipe or device could be read for ever
    kind = ""
    if str(model) and path.exists():
        kind = " (a folder)" if path.is_dir() else " (not a regular file)"
    raise FileNotFoundError(
        f"no model file and no shipped model {str(model)!r}{kind}; shipped: {names}"
    )


def model_name(model: str) -> str:
    """Of a shipped name or a path, without folders and ending."""
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name.removesuffix(".safetensors") or model


def shipped_models() -> dict[str, Path]:
    """Name -> file of every model that comes with the package."""
    folder = shipped_models_directory()
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def shipped_models_directory() -> Path:
    """`attncalc/models` of an installed wheel, `models/` beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def _tensors(potential: Potential) -> dict[str, Tensor]:
    if isinstance(potential, Committee):
        return {
            f"members.{n}.{name}": tensor
            for n, member in enumerate(potential.members)
            for name, tensor in _tensors(member).items()
        }
    named = {f"network.{k}": v for k, v in potential.network.state_dict().items()}
    for n, term in enumerate(potential.pair_terms):
        named |= {f"pair_terms.{n}.{k}": v for k, v in term.state_dict().items()}
    return named


def _description(potential: Potential) -> dict[str, Any]:
    return {
        "network": _name_of(potential.network, NETWORKS),
        "config": dataclasses.asdict(potential.network.config),
        "pair_terms": [_described_term(term) for term in potential.pair_terms],
        "species": list(potential.species),
        "reference_energies": potential.reference_energies.tolist(),
        "scale": potential.scale.tolist(),
        "dtype": str(potential.dtype).removeprefix("torch."),
    }


def _described_term(term: Any) -> dict[str, Any]:
    return {"name": _name_of(term, PAIR_TERMS), "config": dataclasses.asdict(term.config)}


def _name_of(module: nn.Module, table: dict[str, tuple[type[nn.Module], type]]) -> str:
    for name, (kind, _) in table.items():
        if type(module) is kind:
            return name
    raise TypeError(f"{type(module).__name__} has no name in the table of model files")


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Over all tensors and the header without its own checks."""
    described = {key: value for key, value in header.items() if key != "checks"}
    return sha256(json.dumps(described, sort_keys=True), tensors)


def sha256(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Over a text, then names and numbers of tensors, which must be on the host."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().reshape(-1).data)
    return digest.hexdigest()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of an intact file; nothing is built from a damaged one."""
    _check_beginning(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("attncalc")
            names = list(file.keys())
            odd = [name for name in names if file.get_slice(name).get_dtype() not in _STORED]
            tensors = {name: file.get_tensor(name) for name in names if not odd}
    # what the library raises, and what torch does for sizes that are beyond it
    except (SafetensorError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"not a safetensors file, or damaged ({error})") from None
    if text is None:
        raise ValueError(
            "a safetensors file, but not a model of attncalc: weights of other programs are "
            "read by `attncalc convert`"
        )
    header = _parse(text)
    _check_header(header)
    for name in odd or (name for name in names if not torch.isfinite(tensors[name]).all()):
        raise ValueError(f"tensor {name!r} holds numbers that are not finite floats")
    if header["checks"]["sha256"] != _checksum(header, tensors):
        raise ValueError("the checksum does not match, the file is damaged: get it again")
    return header, tensors


def _check_beginning(path: Path) -> None:
    """What can be told from the first bytes and the size, before a library works on the file."""
    with open(path, "rb") as file:
        beginning = file.read(32)
        size = file.seek(0, os.SEEK_END)
    if size > LARGEST_FILE:
        raise ValueError(f"{size / 2**30:.0f} GiB, more than any model: this is something else")
    length = int.from_bytes(beginning[:8], "little")  # of the safetensors header
    if 2 <= length <= size - 8 and len(beginning) > 8:
        if length > LARGEST_HEADER:
            raise ValueError(f"the header is damaged: it claims {length} bytes")
        return
    what = next((name for magic, name in _OTHER_FILES.items() if beginning.startswith(magic)), "")
    if what:
        raise ValueError(
            f"not a safetensors file but {what}; only .safetensors is read, which cannot run code"
        )
    raise ValueError(
        "not a safetensors file, or damaged (empty)"
        if not size
        else "not a safetensors file, or damaged (cut off, or something else): get it again"
    )


def _parse(text: str) -> Any:
    """JSON as the standard has it: no key twice, no NaN, and not nested without end."""
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        depth = _nesting(header)
    except json.JSONDecodeError:
        raise ValueError("the header is damaged: it is not JSON") from None
    except ValueError as error:  # from the two hooks, or an integer of thousands of digits
        raise ValueError(f"the header is damaged: {error}") from None
    except RecursionError:
        depth = DEEPEST_HEADER + 1
    if depth > DEEPEST_HEADER:
        raise ValueError(f"the header is damaged: nested deeper than {DEEPEST_HEADER} levels")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        # readers differ in which of the two counts
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(k for k in keys if keys.count(k) > 1)!r} stands there twice")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _nesting(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_nesting, inner), default=0) if isinstance(value, dict | list) else 0


def _check_header(header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise ValueError(
            f"format {found!r} is not known; this version of attncalc reads {FORMAT}, "
            "a newer one may read it"
        )
    needed: dict[str, type] = {"format": int, "units": dict, "training": dict, "checks": dict}
    if "members" in header:
        _check_entries(header, {**needed, "members": list})
        if len(header["members"]) < 2:
            raise ValueError("a committee has two members or more")
        for member in header["members"]:
            if not isinstance(member, dict):
                raise ValueError("damaged entry in members")
            _check_entries(member, DESCRIPTION)
    else:
        _check_entries(header, {**needed, **DESCRIPTION})
    for description in descriptions(header):
        _check_description(description)
    if header["units"] != UNITS:
        raise ValueError(f"units {header['units']} are not {UNITS}")
    if list(header["checks"]) != ["sha256"]:
        raise ValueError("the checksum is missing, or something stands beside it")


def _check_entries(header: dict[str, Any], needed: dict[str, type]) -> None:
    for key, kind in needed.items():
        if type(header.get(key)) is not kind:
            raise ValueError(f"header entry {key!r} is missing or not a {kind.__name__}")
    unknown = set(header) - set(needed)
    if unknown:
        raise ValueError(f"unknown header entries {sorted(unknown)}")


def _check_description(description: dict[str, Any]) -> None:
    if description["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {description['dtype']!r}")
    species = description["species"]
    if not species or not all(type(z) is int and 0 < z < 119 for z in species):
        raise ValueError("species are not atomic numbers")
    if len(set(species)) < len(species):
        raise ValueError("an element stands twice in species")
    for key in ("reference_energies", "scale"):
        if not all(map(_is_finite, description[key])):
            raise ValueError(f"{key} holds something that is not a finite number")
    if len(description["pair_terms"]) > MOST_PAIR_TERMS:
        raise ValueError(f"more than {MOST_PAIR_TERMS} pair_terms")


def _is_finite(value: Any) -> bool:
    # compared, not converted: an integer may be beyond any float
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _build(header: dict[str, Any], tensors: dict[str, Tensor]) -> Potential:
    n_stored = sum(tensor.numel() for tensor in tensors.values())
    training = header["training"]
    for description in descriptions(header):
        n_layers = description["config"].get("num_layers", 1)
        if isinstance(n_layers, int) and n_layers > len(tensors):  # before they are made
            raise ValueError(
                f"the header is damaged: it speaks of {n_layers} layers, "
                f"the file holds {len(tensors)} tensors"
            )
    if "members" not in header:
        return _build_one(header, n_stored, training)
    members = []
    for description in header["members"]:
        members.append(_build_one(description, n_stored, {}))
        n_stored -= sum(tensor.numel() for tensor in members[-1].parameters())
    return Committee(members, training=training)


def _build_one(description: dict[str, Any], n_stored: int, training: dict[str, Any]) -> Potential:
    network, config = _look_up(NETWORKS, description["network"], description["config"])
    if config.n_weights_at_least > n_stored:  # before memory is taken for them
        raise ValueError(
            f"the header is damaged: its network has {config.n_weights_at_least} weights or more, "
            f"the file holds {n_stored}"
        )
    species, pair_terms = description["species"], []
    for term in description["pair_terms"]:
        if not _is_pair_term(term):
            raise ValueError("damaged entry in pair_terms")
        kind, term_config = _look_up(PAIR_TERMS, term["name"], term["config"])
        pair_terms.append(kind(term_config, tuple(species)))
    try:
        return Potential(
            network(config, len(species)),
            species,
            reference_energies=description["reference_energies"],
            scale=description["scale"],
            pair_terms=pair_terms,
            training=training,
        )
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"the header is damaged: {error}") from None


def _is_pair_term(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"name", "config"}
        and isinstance(entry["name"], str)
        and isinstance(entry["config"], dict)
    )


def _look_up(table: dict, name: str, config: dict) -> tuple[type[nn.Module], Any]:
    if name not in table:
        raise ValueError(f"{name!r} is not known here; known: {', '.join(table)}")
    kind, config_kind = table[name]
    fields = dataclasses.fields(config_kind)
    unknown = [key for key in config if key not in [f.name for f in fields]]
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in config]
    if unknown or missing:
        what = f"{unknown[0]!r} is unknown" if unknown else f"{missing[0]!r} is missing"
        raise ValueError(f"config of {name!r}: {what}; a newer attncalc may have written it")
    try:
        return kind, config_kind(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config of {name!r}: {error}") from None


def _fill(potential: Potential, tensors: dict[str, Tensor]) -> None:
    expected = _tensors(potential)
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra := sorted(set(tensors) - set(expected)):
        raise ValueError(f"tensor {extra[0]!r} is not known ({len(extra)} in all)")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"tensor {name!r} has shape {list(tensor.shape)}, "
                f"the header asks for {list(expected[name].shape)}"
            )
    # in float64 first: the stored bits survive whatever dtype each tensor was saved in
    potential.double()
    state = {name: tensor.double() for name, tensor in tensors.items()}
    if isinstance(potential, Committee):
        for n, member in enumerate(potential.members):
            _take(member, _under(f"members.{n}.", state))
    else:
        _take(potential, state)


def _take(potential: Potential, state: dict[str, Tensor]) -> None:
    potential.network.load_state_dict(_under("network.", state))
    for n, term in enumerate(potential.pair_terms):
        term.load_state_dict(_under(f"pair_terms.{n}.", state))


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
