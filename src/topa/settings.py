"""Settings out of YAML and dotted `key=value` overrides: typed sections, all errors at once."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from topa.errors import ConfigError

__all__ = ["Section", "dump_config", "load_config"]


class Section(BaseModel):
    """A group of settings: no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True
    )


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-3` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[-1])
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} is given twice", node.start_mark
            )
        return mapping


class _Dumper(yaml.SafeDumper):
    """The counterpart of `_Loader`: quotes the strings that it would read as numbers."""


for _side in (_Loader, _Dumper):
    # YAML 1.1 wants a dot and a signed exponent in a float; people write 1e-3.
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _describe_yaml_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}not valid YAML ({problem})"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise ConfigError(problem, where=path, mend="Check the path.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not a UTF-8 text file ({error.reason})", where=path) from None
    except yaml.YAMLError as error:
        raise ConfigError(_describe_yaml_error(error), where=path) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"a mapping of settings is needed, got {type(values).__name__}",
            where=path,
            mend="Write one `key: value` per line.",
        )
    return values


T = TypeVar("T", bound=BaseModel)


def _section_at(cls: type[BaseModel], keys: Sequence[Any]) -> type[BaseModel] | None:
    """Return the class of the section at a path, or None where there is no section."""
    for key in keys:
        field = cls.model_fields.get(key) if isinstance(key, str) else None
        kind = field.annotation if field else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
        cls = kind
    return cls


def _start_below(cls: type[BaseModel], keys: Sequence[str]) -> Any:
    """Return what an override below a path that the file leaves out is put into."""
    section = _section_at(cls, keys[:-1])
    field = section.model_fields.get(keys[-1]) if section else None
    if field is None or field.is_required() or _section_at(cls, keys):
        return {}
    # One entry of a mapping with a default (data.tasks.open) changes that entry alone.
    return copy.deepcopy(field.get_default(call_default_factory=True))


def _override(cls: type[BaseModel], values: dict[str, Any], setting: str) -> str | None:
    """Put one `a.b=value` into the raw values; return the problem, if there is one."""
    name, equals, text = setting.partition("=")
    name = name.strip()
    keys = name.split(".")
    if not equals or not all(keys):
        return f"{setting!r} is not of the form key=value"
    try:
        value = _parse(text)
    except yaml.YAMLError as error:
        return f"{name}: {_describe_yaml_error(error)}"
    node = values
    for depth, key in enumerate(keys[:-1]):
        if key not in node:
            node[key] = _start_below(cls, keys[: depth + 1])
        if not isinstance(node[key], dict):
            return f"{name}: {'.'.join(keys[: depth + 1])} is a value, not a section"
        node = node[key]
    node[keys[-1]] = value
    return None


def _all_names(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in cls.model_fields:
        section = _section_at(cls, [name])
        yield from _all_names(section, f"{prefix}{name}.") if section else [prefix + name]


def _suggest(cls: type[BaseModel], loc: Sequence[Any]) -> str:
    """Return the known name that an unknown key was probably meant to be, as advice."""
    key, section = str(loc[-1]), _section_at(cls, loc[:-1]) or cls
    prefix = "".join(f"{part}." for part in loc[:-1])
    elsewhere = [name for name in _all_names(cls) if name.rpartition(".")[2] == key]
    near = difflib.get_close_matches(key, section.model_fields, n=1)
    if near or elsewhere:
        return f"did you mean {prefix + near[0] if near else elsewhere[0]}?"
    return f"known here: {', '.join(section.model_fields)}"


def _describe(cls: type[BaseModel], error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        loc = item["loc"]
        name = ".".join(map(str, loc)) or "settings"
        if item["type"] == "extra_forbidden":
            problems.append(f"{name}: unknown key, {_suggest(cls, loc)}")
        elif item["type"] == "missing":
            problems.append(f"{name}: missing")
        elif item["type"] == "value_error":
            problems.append(f"{name}: {item['ctx']['error']}")
        elif item["type"] in ("model_type", "model_attributes_type"):
            section = _section_at(cls, loc) or cls
            problems.append(f"{name}: a section is needed ({', '.join(section.model_fields)})")
        else:
            rule = item["msg"].replace("Input should be", "should be")
            problems.append(f"{name}: {rule}, got {item['input']!r}")
    return problems


def load_config(cls: type[T], path: Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Read settings from a YAML file, change them by overrides, and check them all.

    Args:
        cls: The class of the settings.
        path: YAML file; None means the defaults.
        overrides: `section.key=value` strings, the value in YAML; later ones win.

    Raises:
        ConfigError: The file cannot be read, or settings are unknown, missing, of a wrong type
            or out of bounds; names every one of them, in one line.
    """
    values = _read_yaml(path) if path is not None else {}
    found = (_override(cls, values, setting) for setting in overrides)
    problems = [problem for problem in found if problem]
    config = None
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        problems += _describe(cls, error)
    if problems or config is None:
        raise ConfigError("; ".join(problems), where=path or "settings")
    return config


def dump_config(config: BaseModel) -> str:
    """Return settings as YAML that `load_config` reads back to equal ones."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
