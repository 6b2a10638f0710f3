"""With a key, Temporal stores nothing readable; keys can be changed; without one, it is as it was."""

import base64
import os

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowFailureError

from daemon.config import load, parse
from daemon.errors import ConfigError, WorkflowError
from daemon.settings import TemporalSettings
from tests.support.mirrored_table import MirroredTable
from tests.workflows.backfills import Backfills, forget, insert
from workflows.client import connect, reason
from workflows.codec import EncryptingCodec, codec

OLD, NEW = os.urandom(32), os.urandom(32)
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'{"after":["424242"]}')


async def test_a_payload_comes_back_and_is_not_readable_meanwhile() -> None:
    [stored] = await EncryptingCodec(NEW).encode([PLAIN])
    assert b"424242" not in stored.SerializeToString()
    assert await EncryptingCodec(NEW).decode([stored]) == [PLAIN]
    [again] = await EncryptingCodec(NEW).encode([PLAIN])
    assert again.data != stored.data


async def test_an_old_key_still_decrypts_and_encrypts_no_more() -> None:
    [stored] = await EncryptingCodec(OLD).encode([PLAIN])
    changed = EncryptingCodec(NEW, [OLD])
    assert await changed.decode([stored]) == [PLAIN]
    [fresh] = await changed.encode([PLAIN])
    with pytest.raises(WorkflowError, match="codec_keys_old"):
        await EncryptingCodec(OLD).decode([fresh])


async def test_what_was_written_without_a_key_stays_readable() -> None:
    assert await EncryptingCodec(NEW).decode([PLAIN]) == [PLAIN]


async def test_damaged_bytes_are_told() -> None:
    [stored] = await EncryptingCodec(NEW).encode([PLAIN])
    stored.data = stored.data[:-1] + bytes([stored.data[-1] ^ 1])
    with pytest.raises(WorkflowError, match="damaged"):
        await EncryptingCodec(NEW).decode([stored])


def test_a_key_of_another_size_is_refused_and_never_shown() -> None:
    short = base64.b64encode(b"short").decode()
    with pytest.raises(ConfigError, match="codec_key: not 32 bytes") as refused:
        parse({"temporal": {"codec_key": short}})
    assert short not in str(refused.value)
    assert codec(TemporalSettings()) is None


async def test_the_server_holds_no_key_position_or_message_in_the_clear(mirrored: MirroredTable) -> None:
    key = base64.b64encode(NEW).decode()
    text = mirrored.config_path.read_text().replace(
        "task_queue =", f'codec_key = "{key}"\n            task_queue ='
    )
    mirrored.config_path.write_text(text)
    plain, mirrored.config = mirrored.config, load(mirrored.config_path)
    mirrored.connect()
    insert(mirrored, 142_424_001, 142_424_200)
    with mirrored.daemon(), mirrored.worker():
        mirrored.wait_equal()
        forget(mirrored)
        backfills = await Backfills.of(mirrored)
        done = await backfills.run(where="id > 142424100")
        assert done.rows == 100
        name = f"backfill-{mirrored.name}"
        assert "142424" not in await stored(await connect(plain), name)
        with pytest.raises(WorkflowFailureError) as failed:
            await backfills.run(where="no_such_column = 1")
        assert "no_such_column" in reason(failed.value)
        assert "no_such_column" not in await stored(await connect(plain), name)
        shown = mirrored.command("workflows", "show", name, "--json").stdout
        assert "no_such_column" in shown


async def stored(client: Client, workflow_id: str) -> str:
    """All that the server has of a workflow, for somebody without the key."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    texts = []
    for event in history.events:
        texts += [str(event), event.SerializeToString().decode("latin-1")]
    assert "encryption-key-id" in texts[0]
    assert "a test's" not in texts[1], "nor its summary"
    return "".join(texts).replace(workflow_id, "")
