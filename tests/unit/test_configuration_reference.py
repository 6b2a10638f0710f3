"""docs/configuration.md and daemon.toml name every key there is, and no command shows a secret."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.reference import markdown, masked, sections
from daemon.config import load, parse
from daemon.settings import Config, EventSource

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "daemon.toml"
SECRET = "s3cret-value"
EXAMPLES = {
    *("client", "api_key", "codec_key", "ports", "capture_dsn"),
    *("slot", "publication", "connector", "topic"),
}
"""Keys whose default is empty or follows from others: the file shows what one would write."""


def test_the_configuration_reference_is_what_livevec_config_docs_prints() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == markdown()


def test_every_key_has_a_description() -> None:
    nameless = [line for line in markdown().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert all(line.startswith("| `kind`") for line in nameless)


def test_the_reference_file_names_every_key() -> None:
    text = REFERENCE.read_text("utf-8")
    missing = [
        f"{heading}: {name}"
        for heading, model in sections()
        if model not in (Config, EventSource)
        for name in model.model_fields
        if not re.search(rf"^(?:# )?{name} = |[{{,] {name} = |^\[+(?:\w+\.)*{name}\]+$", text, re.MULTILINE)
    ]
    assert missing == []


def test_a_key_that_is_commented_out_shows_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{(\w+)\}", text := REFERENCE.read_text("utf-8")):
        monkeypatch.setenv(name, "A" * 43 + "=")
    uncommented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    written, plain = parse(tomllib.loads(uncommented)), load(REFERENCE)
    assert set(_differing(written.model_dump(), plain.model_dump())) == EXAMPLES


def _differing(a: Any, b: Any, name: str = "") -> Iterator[str]:
    """Names of the values that differ; free-form tables count as one value."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _differing(a[key], b[key], key)
    elif isinstance(a, tuple) and len(a) == len(b):
        for one, other in zip(a, b, strict=True):
            yield from _differing(one, other, name)
    elif a != b:
        yield name


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        ({"redis": {"url": f"redis://me:{SECRET}@host:6379/0"}}, "redis://me:**********@host:6379/0"),
        ({"embedding": {"api_key": SECRET}}, "**********"),
        ({"kafka": {"client": {"sasl.password": SECRET, "security.protocol": "SASL_SSL"}}}, "SASL_SSL"),
        ({"sources": [{"name": "a", "kind": "postgres", "dsn": f"host=h password={SECRET}"}]}, "**********"),
        ({"sources": [{"name": "a", "kind": "postgres", "dsn": f"postgresql://u:{SECRET}@h/d"}]}, "@h/d"),
        ({"sources": [{"name": "a", "kind": "postgres", "dsn": f"postgresql://h/d?password={SECRET}"}]}, "*"),
        (
            {"sources": [{"name": "a", "kind": "postgres", "connector": {"database.sslpassword": SECRET}}]},
            "*",
        ),
    ],
)
def test_secrets_are_masked_wherever_they_may_stand(section: dict[str, Any], shown: str) -> None:
    printed = json.dumps(masked(parse(section)))
    assert SECRET not in printed
    assert shown in printed
