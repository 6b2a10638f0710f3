"""Whether the settings of a new index version can be, before anything is made of them."""

from pydantic import ValidationError

from daemon.errors import ConfigError
from daemon.index.versions import IndexVersion
from daemon.settings import IndexSettings, Pipeline


def checked(pipeline: Pipeline, wanted: IndexVersion) -> IndexVersion:
    """The same, once each setting was looked at as if it were in daemon.toml.

    Raises:
        ConfigError: one cannot be; says which.
    """
    try:
        IndexSettings.model_validate(
            {name: getattr(wanted, name) for name in ("m", "ef_construction", "metric", "type")}
        )
        wanted.pipeline(pipeline)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in error.errors()]
        raise ConfigError("; ".join(problems)) from None
    if wanted.dimension < 1:
        raise ConfigError(f"dimension: {wanted.dimension} is no length of a vector")
    return wanted
