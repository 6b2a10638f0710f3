"""What a command gets besides its own arguments: the configuration, and what it names."""

import os
from pathlib import Path
from typing import Annotated

import typer

from daemon import config as configuration
from daemon.errors import ConfigError
from daemon.settings import Config, Pipeline, PostgresSource

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def config_path(context: typer.Context) -> Path:
    """Return --config, which is the context's object, else $LIVEVEC_CONFIG, else ./daemon.toml; it may not exist."""
    return context.obj or Path(os.environ.get("LIVEVEC_CONFIG") or "daemon.toml")


def is_given(context: typer.Context) -> bool:
    """Tell whether --config or $LIVEVEC_CONFIG names the configuration: then it must exist."""
    return context.obj is not None or bool(os.environ.get("LIVEVEC_CONFIG"))


def loaded(context: typer.Context) -> Config:
    """Return the configuration as it is written."""
    return configuration.load(config_path(context))


def resolved(context: typer.Context) -> Config:
    """Return the configuration, with the embedded stack's addresses in place of "local"."""
    return configuration.resolve_local(loaded(context))


def postgres_sources(config: Config, name: str | None) -> list[PostgresSource]:
    """Return the PostgreSQL source of that name, or all of them.

    Raises:
        ConfigError: there is none.
    """
    sources = [source for source in config.sources if isinstance(source, PostgresSource)]
    matching = [source for source in sources if name in (None, source.name)]
    if matching:
        return matching
    if not sources:
        raise ConfigError(
            'daemon.toml defines no PostgreSQL source; add a [[sources]] section of kind "postgres"'
        )
    known = ", ".join(source.name for source in sources)
    raise ConfigError(f"no PostgreSQL source is named {name!r}; name one of: {known}")


def pipelines(config: Config, name: str | None) -> list[Pipeline]:
    """Return the pipeline of that name, or all of them.

    Raises:
        ConfigError: there is none.
    """
    if name is not None:
        return [config.pipeline(name)]
    if not config.pipelines:
        raise ConfigError("daemon.toml defines no pipeline; add a [[pipelines]] section")
    return list(config.pipelines)
