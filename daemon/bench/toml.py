"""Settings as TOML, for a process that is given its own configuration."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from daemon.settings import Config


def to_toml(config: Config) -> str:
    """A file that `config.load` reads back as these settings. Secrets are in it: keep it from others."""
    lines: list[str] = []
    sections: list[str] = []
    for key, value in config.model_dump().items():
        if isinstance(value, Mapping):
            sections += ["", f"[{key}]", *_pairs(value)]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for item in value:
                sections += ["", f"[[{key}]]", *_pairs(item)]
        else:
            lines.append(f"{key} = {_value(value)}")
    return "\n".join([*lines, *sections]) + "\n"


def _pairs(section: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in section.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pairs(value)) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    # TOML's escapes are JSON's, but for characters beyond the basic plane, which it takes as they are.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return _text(name)
