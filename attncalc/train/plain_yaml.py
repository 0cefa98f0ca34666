"""Reader of plain YAML: keys and values, without tags, anchors and repeated keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attncalc.text import one_line

HOW_TO_INSTALL = 'training needs: pip install "attncalc[train]"'
# A recipe is a page of text; PyYAML takes seconds for more than this.
LARGEST = 1 << 16  # bytes
_PLAIN_NUMBER = re.compile(
    r"^[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    1e-3 is a number here, while YAML 1.1 reads it as text. 1:30 and 017, which YAML 1.1 reads as 90
    and 15, are refused. Also refused are repeated keys, whose first value YAML drops silently,
    anchors and aliases, by which a few lines can become gigabytes, and all tags beyond plain YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: PyYAML is not installed.
        OSError: the system refuses to read it.
        ValueError: it is not such a file; the message is one line that starts with its name.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{error}; {HOW_TO_INSTALL}") from None

    if not path.is_file():
        kind = ": it is a folder" if path.is_dir() else ""
        raise FileNotFoundError(f"no such recipe: {path}{kind}")
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    try:
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST >> 10} KiB, which no recipe has")
        found = yaml.load(content.decode("utf-8-sig"), Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(
            one_line(f"{path.name}: not readable as YAML ({where}{error.problem})")
        ) from None
    except RecursionError:
        raise ValueError(f"{path.name}: not a recipe (nested too deeply)") from None
    # ValueError: not UTF-8, an impossible date, an integer of thousands of digits ...
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path.name}: not readable as YAML ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path.name}: expected keys and values, one per line, as in `epochs: 1000`"
        )
    return found


def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if getattr(event, "anchor", None) is not None:  # of an alias too
                raise yaml.MarkedYAMLError(
                    problem="anchors and aliases (& and *) are not used in recipes: write it out",
                    problem_mark=event.start_mark,
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            seen: set[str] = set()
            for key in keys:
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} appears twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def construct_number(self, node: yaml.ScalarNode) -> int | float:
            if not _PLAIN_NUMBER.match(node.value):  # YAML 1.1: 1:30 is 90, 017 is 15
                raise yaml.MarkedYAMLError(
                    problem=f"{node.value!r} is an unusual number: write it with digits, a point "
                    "and an exponent, or in quotes if it is text",
                    problem_mark=node.start_mark,
                )
            whole = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_number)
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
    return Loader
