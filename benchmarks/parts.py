"""Files in parts of at most 14 MB, for machines that take and give back no larger ones.

    python benchmarks/parts.py split FOLDER     # last.ckpt -> last.ckpt.part-00-of-04-...
    python benchmarks/parts.py join FOLDER

The name of a part ends in the number of parts and the beginning of the checksum of the whole file:
parts that do not belong together are not joined.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

LARGEST = 14_000_000  # bytes
PART = re.compile(r"(?P<name>.+)\.part-(?P<k>\d+)-of-(?P<n>\d+)-(?P<sum>[0-9a-f]{12})")


def split(folder: Path, largest: int = LARGEST) -> list[Path]:
    """Replace every larger file below a folder by its parts; returns those."""
    made = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.stat().st_size <= largest:
            continue
        content = path.read_bytes()
        pieces = [content[start : start + largest] for start in range(0, len(content), largest)]
        checksum = hashlib.sha256(content).hexdigest()[:12]
        for k, piece in enumerate(pieces):
            part = path.with_name(f"{path.name}.part-{k:02d}-of-{len(pieces):02d}-{checksum}")
            part.write_bytes(piece)
            made.append(part)
        path.unlink()
    return made


def join(folder: Path) -> list[Path]:
    """Replace parts below a folder by the files that they make; returns those.

    Raises:
        ValueError: a part is missing or damaged, or another file of this name is there already;
            nothing of that file is changed.
    """
    groups: dict[tuple[Path, str, int], dict[int, Path]] = {}
    for path in sorted(folder.rglob("*.part-*")):
        found = PART.fullmatch(path.name)
        if found:
            whole = path.with_name(found["name"])
            groups.setdefault((whole, found["sum"], int(found["n"])), {})[int(found["k"])] = path
    made = []
    names = [whole for whole, *_ in groups]
    for (whole, checksum, n), parts in groups.items():
        if names.count(whole) > 1 or whole.exists():
            raise ValueError(f"{whole.name}: there are several of it; remove all but one")
        if missing := sorted(set(range(n)) - set(parts)):
            raise ValueError(f"{whole.name}: part {missing[0]} of {n} is missing")
        content = b"".join(parts[k].read_bytes() for k in range(n))
        if hashlib.sha256(content).hexdigest()[:12] != checksum:
            raise ValueError(f"{whole.name}: its parts are damaged")
        partial = whole.with_name(f".{whole.name}.joining")
        partial.write_bytes(content)
        partial.replace(whole)
        for part in parts.values():
            part.unlink()
        made.append(whole)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"no such folder: {arguments.folder}")
    try:
        made = {"split": split, "join": join}[arguments.what](arguments.folder)
    except ValueError as error:
        sys.exit(str(error))
    for path in made:
        print(path)


if __name__ == "__main__":
    main()
