"""What a command is given besides its own arguments: the configuration."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from daemon.settings import Config, Pipeline, PostgresSource

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@dataclass(frozen=True)
class Invocation:
    """`config`: --config, where it was given."""

    config: Path | None


def config_path(context: typer.Context) -> Path:
    """--config, else $LIVEVEC_CONFIG, else ./daemon.toml; it may not exist."""
    invocation: Invocation = context.obj
    return invocation.config or Path(os.environ.get("LIVEVEC_CONFIG") or "daemon.toml")


def is_given(context: typer.Context) -> bool:
    """Whether the configuration was named, by --config or $LIVEVEC_CONFIG: then it must exist."""
    invocation: Invocation = context.obj
    return invocation.config is not None or bool(os.environ.get("LIVEVEC_CONFIG"))


def loaded(context: typer.Context) -> "Config":
    """The configuration as it is written."""
    from daemon import config

    return config.load(config_path(context))


def resolved(context: typer.Context) -> "Config":
    """The configuration with the embedded stack's addresses in place of "local"."""
    from daemon import config

    return config.resolve_local(loaded(context))


def postgres_sources(config: "Config", name: str | None) -> "list[PostgresSource]":
    """The PostgreSQL source of that name, or all of them.

    Raises:
        ConfigError: there is none.
    """
    from daemon.errors import ConfigError
    from daemon.settings import PostgresSource

    sources = [source for source in config.sources if isinstance(source, PostgresSource)]
    found = [source for source in sources if name in (None, source.name)]
    if not found:
        known = ", ".join(source.name for source in sources) or "none"
        what = (
            f"no PostgreSQL source is named {name!r}" if name else "daemon.toml defines no PostgreSQL source"
        )
        raise ConfigError(f"{what}; defined: {known}")
    return found


def pipelines(config: "Config", name: str | None) -> "list[Pipeline]":
    """The pipeline of that name, or all of them.

    Raises:
        ConfigError: there is none.
    """
    from daemon.errors import ConfigError

    if name is not None:
        return [config.pipeline(name)]
    if not config.pipelines:
        raise ConfigError("daemon.toml defines no pipeline; add a [[pipelines]] section")
    return list(config.pipelines)
