"""daemon.toml -> frozen settings.

Parsed once, at start. Unknown keys are refused with the nearest known one, `${NAME}` in a string is taken
from the environment, an address given as "local" is that of the embedded stack (`livevec up`), secrets are
masked in every repr.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from daemon.errors import ConfigError
from daemon.settings import LOCAL, SOURCE_KINDS, Config, EventSource, PostgresSource, Settings, nearest

_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
S = TypeVar("S", bound=Settings)


def default_home() -> Path:
    """State folder of the embedded stack: $LIVEVEC_HOME, else .livevec here."""
    return Path(os.environ.get("LIVEVEC_HOME") or ".livevec").absolute()


def load(path: Path | None = None) -> Config:
    """Read and check a configuration file.

    Args:
        path: the file; None: $LIVEVEC_CONFIG, else ./daemon.toml.

    Raises:
        ConfigError: the file is missing, not TOML, or a key or value is wrong; names the key and the remedy.
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
    """Check a parsed document; `where` names it in errors."""
    try:
        return Config.model_validate(_expand(document, where))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, where) for problem in error.errors())) from None


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
    found: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}

    def address(value: str, key: str) -> str:
        if value != LOCAL:
            return value
        if not found:
            raise ConfigError(
                f'an address is "local" but no embedded stack is up ({file} is missing); '
                "start it with `livevec up`, or set the address in daemon.toml"
            )
        return found[key]

    def source(item: PostgresSource | EventSource) -> PostgresSource | EventSource:
        if isinstance(item, PostgresSource):
            return _with(item, dsn=SecretStr(address(item.dsn.get_secret_value(), "postgres_dsn")))
        return item

    def listen(value: str, key: str) -> str:
        # Nobody needs an embedded stack to be listened to.
        if value == LOCAL and not found:
            return _LISTEN[key]
        return address(value, key).removeprefix("http://").removesuffix("/metrics")

    embedding, worker = config.embedding, config.temporal.worker
    return _with(
        config,
        kafka=_with(
            config.kafka, bootstrap_servers=address(config.kafka.bootstrap_servers, "kafka_bootstrap_servers")
        ),
        connect=_with(config.connect, url=address(config.connect.url, "connect_url")),
        redis=_with(config.redis, url=SecretStr(address(config.redis.url.get_secret_value(), "redis_url"))),
        embedding=_with(embedding, url=address(embedding.url, "triton_grpc")),
        temporal=_with(
            config.temporal,
            address=address(config.temporal.address, "temporal_address"),
            ui_url=address(config.temporal.ui_url, "temporal_ui_url"),
            worker=_with(
                worker,
                metrics_address=listen(worker.metrics_address, "worker_metrics_url"),
                sdk_metrics_address=listen(worker.sdk_metrics_address, "worker_sdk_metrics_url"),
            ),
        ),
        telemetry=_with(config.telemetry, address=listen(config.telemetry.address, "metrics_url")),
        sources=tuple(source(item) for item in config.sources),
    )


def _with(settings: S, **changes: Any) -> S:
    return settings.model_copy(update=changes)


def _expand(value: Any, where: str) -> Any:
    """Replace ${NAME} in every string by the environment's value."""
    if isinstance(value, str):
        return _ENVIRONMENT.sub(lambda match: _environment(match[1], where), value)
    if isinstance(value, Mapping):
        return {key: _expand(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, where) for item in value]
    return value


def _environment(name: str, where: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise ConfigError(f"{where} uses ${{{name}}}, but the environment has no {name}; set it") from None


def _explain(problem: Any, where: str) -> str:
    """One pydantic problem as a sentence: file, key, what is wrong, what is allowed."""
    path = [part for part in problem["loc"] if part not in ("postgres", "events")]
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{nearest(str(path[-1]), _known_keys(path[:-1]))}"
    if problem["type"].startswith("union_tag"):
        return f"{where}: {key}.kind must be one of {', '.join(SOURCE_KINDS)}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {text}" if key else f"{where}: {text}"


def _known_keys(path: list[Any]) -> list[str]:
    """Names of the keys allowed at a path of the document."""
    models: list[type[BaseModel]] = [Config]
    for part in path:
        if isinstance(part, int):
            continue
        models = [
            inner
            for model in models
            if part in model.model_fields
            for inner in _models(model.model_fields[part].annotation)
        ]
    return [name for model in models for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes named anywhere inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]
