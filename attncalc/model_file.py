"""Model files: one .safetensors, a JSON header, no code in it.

The header (the file's metadata entry "attncalc") holds

    {"format": 1, "network": name, "config": {...}, "pair_terms": [{"name", "config"}, ...],
     "species": [Z, ...], "reference_energies": [eV, ...], "scale": [...], "dtype": "float32",
     "units": {...}, "training": {...}, "checks": {"sha256": ...}}

so that the file rebuilds its potential by itself. Loading reads numbers and JSON: it can execute
nothing. The table of network names below is the only one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from attncalc.nn.so3krates import So3krates, So3kratesConfig
from attncalc.physics.zbl import ZBLConfig, ZBLRepulsion
from attncalc.potential import Potential

FORMAT = 1
UNITS = {"energy": "eV", "length": "Angstrom"}

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {"so3krates": (So3krates, So3kratesConfig)}
PAIR_TERMS: dict[str, tuple[type[nn.Module], type]] = {"zbl": (ZBLRepulsion, ZBLConfig)}

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save(potential: Potential, path: str | Path) -> None:
    """Write a potential to one file, atomically: a reader never sees half of it.

    Tensors are stored in the dtype they have, so that loading gives the same bits back.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(potential).items()}
    header = {
        "format": FORMAT,
        "network": _name_of(potential.network, NETWORKS),
        "config": dataclasses.asdict(potential.network.config),
        "pair_terms": [
            {"name": _name_of(term, PAIR_TERMS), "config": dataclasses.asdict(term.config)}
            for term in potential.pair_terms
        ],
        "species": list(potential.species),
        "reference_energies": potential.reference_energies.tolist(),
        "scale": potential.scale.tolist(),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "units": UNITS,
        "training": potential.training_info,
    }
    # as it will be read: JSON turns keys into strings and tuples into lists
    header = json.loads(json.dumps(header))
    header["checks"] = {"sha256": _checksum(header, tensors)}
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
    model: str | Path, *, device: str | torch.device = "cpu", dtype: str | None = None
) -> Potential:
    """Read a potential from a model file.

    Args:
        model: the name of a shipped model (see `shipped_models`) or the path of a model file.
        device: where its tensors go.
        dtype: "float32" or "float64" for the network; None for the model's own.

    Returns:
        A potential whose parameters do not require gradients.

    Raises:
        FileNotFoundError: there is neither a shipped model nor a file of this name.
        ValueError: the file is not an intact model file of this format, or `dtype` is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    path = find_model(model)
    header, tensors = _read(path)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
        potential = _build(path, header)
    _fill(path, potential, tensors)
    if header["checks"]["sha256"] != _checksum(header, tensors):
        raise ValueError(
            f"{path.name}: the checksum does not match, the file is damaged: get it again"
        )
    potential.network.to(DTYPES[dtype or header["dtype"]])
    return potential.to(device).requires_grad_(False).eval()


def header(model: str | Path) -> dict[str, Any]:
    """The JSON header of a model file, without building the potential; errors as in `load`."""
    return _read(find_model(model))[0]


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
    raise FileNotFoundError(f"no model file and no shipped model {str(model)!r}; shipped: {names}")


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
    named = {f"network.{k}": v for k, v in potential.network.state_dict().items()}
    for n, term in enumerate(potential.pair_terms):
        named |= {f"pair_terms.{n}.{k}": v for k, v in term.state_dict().items()}
    return named


def _name_of(module: nn.Module, table: dict[str, tuple[type[nn.Module], type]]) -> str:
    for name, (kind, _) in table.items():
        if type(module) is kind:
            return name
    raise TypeError(f"{type(module).__name__} has no name in the table of model files")


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Over all tensors and the header without its own checks."""
    described = {key: value for key, value in header.items() if key != "checks"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("attncalc")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name}: not a safetensors file, or damaged ({error})") from None
    if text is None:
        raise ValueError(f"{path.name}: a safetensors file, but not a model of attncalc")
    try:
        header = json.loads(text)
    except ValueError:
        raise ValueError(f"{path.name}: the header is damaged: it is not JSON") from None
    _check_header(path, header)
    return header, tensors


def _check_header(path: Path, header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise ValueError(
            f"{path.name}: format {found!r} is not known; this version of attncalc reads {FORMAT}"
        )
    needed = {
        "format": int,
        "network": str,
        "config": dict,
        "pair_terms": list,
        "species": list,
        "reference_energies": list,
        "scale": list,
        "dtype": str,
        "units": dict,
        "training": dict,
        "checks": dict,
    }
    for key, kind in needed.items():
        if not isinstance(header.get(key), kind):
            raise ValueError(
                f"{path.name}: header entry {key!r} is missing or not a {kind.__name__}"
            )
    unknown = set(header) - set(needed)
    if unknown:
        raise ValueError(f"{path.name}: unknown header entries {sorted(unknown)}")
    if header["units"] != UNITS:
        raise ValueError(f"{path.name}: units {header['units']} are not {UNITS}")
    if header["dtype"] not in DTYPES:
        raise ValueError(f"{path.name}: unknown dtype {header['dtype']!r}")
    species = header["species"]
    if not species or not all(isinstance(z, int) and 0 < z < 119 for z in species):
        raise ValueError(f"{path.name}: species are not atomic numbers")
    if len(set(species)) < len(species):
        raise ValueError(f"{path.name}: an element stands twice in species")
    for key in ("reference_energies", "scale"):
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in header[key]):
            raise ValueError(f"{path.name}: {key} holds something that is not a finite number")
    if "sha256" not in header["checks"]:
        raise ValueError(f"{path.name}: the checksum is missing")


def _build(path: Path, header: dict[str, Any]) -> Potential:
    network, config = _look_up(path, NETWORKS, header["network"], header["config"])
    pair_terms = []
    for term in header["pair_terms"]:
        if not _is_pair_term(term):
            raise ValueError(f"{path.name}: damaged entry in pair_terms")
        kind, term_config = _look_up(path, PAIR_TERMS, term["name"], term["config"])
        pair_terms.append(kind(term_config, tuple(header["species"])))
    try:
        return Potential(
            network(config, len(header["species"])),
            header["species"],
            reference_energies=header["reference_energies"],
            scale=header["scale"],
            pair_terms=pair_terms,
            training=header["training"],
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name}: the header is damaged: {error}") from None


def _is_pair_term(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"name", "config"}
        and isinstance(entry["name"], str)
        and isinstance(entry["config"], dict)
    )


def _look_up(path: Path, table: dict, name: str, config: dict) -> tuple[type[nn.Module], Any]:
    if name not in table:
        raise ValueError(f"{path.name}: {name!r} is not known here; known: {', '.join(table)}")
    kind, config_kind = table[name]
    try:
        return kind, config_kind(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: config of {name!r}: {error}") from None


def _fill(path: Path, potential: Potential, tensors: dict[str, Tensor]) -> None:
    expected = _tensors(potential)
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"{path.name}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra := sorted(set(tensors) - set(expected)):
        raise ValueError(f"{path.name}: tensor {extra[0]!r} is not known ({len(extra)} in all)")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path.name}: tensor {name!r} has shape {list(tensor.shape)}, "
                f"the header asks for {list(expected[name].shape)}"
            )
        if tensor.dtype not in DTYPES.values() or not torch.isfinite(tensor).all():
            raise ValueError(
                f"{path.name}: tensor {name!r} holds numbers that are not finite floats"
            )
    # in float64 first: the stored bits survive whatever dtype each tensor was saved in
    potential.double()
    state = {name: tensor.double() for name, tensor in tensors.items()}
    potential.network.load_state_dict(_under("network.", state))
    for n, term in enumerate(potential.pair_terms):
        term.load_state_dict(_under(f"pair_terms.{n}.", state))


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
