"""The reader of daemon.toml, which returns frozen settings.

The file is parsed once, at start. An unknown key is refused with the nearest known one, `${NAME}` in a string is taken
from the environment, an address given as "local" is that of the embedded stack (`livevec up`), and secrets are masked
in every repr.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from daemon.errors import ConfigError
from daemon.settings import LOCAL, SOURCE_KINDS, Config, Settings, nearest

_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def default_home() -> Path:
    """Return the folder of the embedded stack: $LIVEVEC_HOME, else `.livevec` in the current folder."""
    return Path(os.environ.get("LIVEVEC_HOME") or ".livevec").absolute()


def load(path: Path | None = None) -> Config:
    """Read and check a configuration file: `path`, else $LIVEVEC_CONFIG, else ./daemon.toml.

    Raises:
        ConfigError: the file is missing, not TOML, or a key or a value is wrong; the message names it and the remedy.
    """
    path = path or Path(os.environ.get("LIVEVEC_CONFIG") or "daemon.toml")
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name the file with --config or $LIVEVEC_CONFIG") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return parse(document, str(path))


def parse(document: Mapping[str, Any], where: str = "configuration") -> Config:
    """Check a parsed document; `where` is its name in errors."""
    try:
        return Config.model_validate(_expand(document, where))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, where) for problem in error.errors())) from None


# The keys whose value may be "local", each with its name in the embedded stack's addresses.json.
_LOCAL_ADDRESSES: dict[str, Any] = {
    "kafka": {"bootstrap_servers": "kafka_bootstrap_servers"},
    "connect": {"url": "connect_url"},
    "redis": {"url": "redis_url"},
    "embedding": {"url": "triton_grpc"},
    "temporal": {
        "address": "temporal_address",
        "ui_url": "temporal_ui_url",
        "worker": {
            "metrics_address": "worker_metrics_url",
            "sdk_metrics_address": "worker_sdk_metrics_url",
        },
    },
    "telemetry": {"address": "metrics_url"},
    "sources": {"dsn": "postgres_dsn"},
}
# What a process listens on needs no embedded stack.
_LISTEN = {
    "metrics_url": "127.0.0.1:9464",
    "worker_metrics_url": "127.0.0.1:9465",
    "worker_sdk_metrics_url": "127.0.0.1:9466",
}


def resolve_local(config: Config, home: Path | None = None) -> Config:
    """Replace every address given as "local" by that of the embedded stack in `home`.

    Raises:
        ConfigError: the address of a server is "local" and no embedded stack is up there.
    """
    file = (home or default_home()) / "addresses.json"
    addresses: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}

    def address(key: str) -> str:
        if key in _LISTEN:
            url = addresses[key] if addresses else _LISTEN[key]
            return url.removeprefix("http://").removesuffix("/metrics")
        if not addresses:
            raise ConfigError(
                f'an address is "local" but no embedded stack is up ({file} is missing); '
                "start it with `livevec up`, or set the address in daemon.toml"
            )
        return addresses[key]

    def resolved(value: Any, key: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(resolved(item, key) for item in value)
        if isinstance(value, Settings):
            names = key.keys() & type(value).model_fields.keys()
            return value.model_copy(
                update={name: resolved(getattr(value, name), key[name]) for name in names}
            )
        if isinstance(value, SecretStr):
            return SecretStr(address(key)) if value.get_secret_value() == LOCAL else value
        return address(key) if value == LOCAL else value

    result: Config = resolved(config, _LOCAL_ADDRESSES)
    return result


def _expand(value: Any, where: str) -> Any:
    """Replace ${NAME} in every string by its value in the environment."""
    if isinstance(value, str):
        for name in _ENVIRONMENT.findall(value):
            if name not in os.environ:
                raise ConfigError(f"{where} uses ${{{name}}}, but the environment has no {name}; set it")
        return _ENVIRONMENT.sub(lambda match: os.environ[match[1]], value)
    if isinstance(value, Mapping):
        return {key: _expand(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, where) for item in value]
    return value


def _explain(problem: Any, where: str) -> str:
    """Describe one pydantic problem in a sentence: file, key, what is wrong, what is allowed."""
    path = [part for part in problem["loc"] if part not in ("postgres", "events")]
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{nearest(str(path[-1]), _known_keys(path[:-1]))}"
    if problem["type"].startswith("union_tag"):
        return f"{where}: {key}.kind must be one of {', '.join(SOURCE_KINDS)}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {text}" if key else f"{where}: {text}"


def _known_keys(path: list[Any]) -> list[str]:
    """Return the names of the keys that are allowed at a path of the document."""
    models: list[type[BaseModel]] = [Config]
    for part in path:
        if isinstance(part, int):
            continue
        models = [
            inner
            for model in models
            if part in model.model_fields
            for inner in models_in(model.model_fields[part].annotation)
        ]
    return [name for model in models for name in model.model_fields]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes named anywhere inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]
