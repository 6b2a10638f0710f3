"""Encrypts what Temporal stores of workflows: arguments, answers, heartbeats, failures.

AES-256-GCM with a random nonce for each payload. The id of the key goes along, so that keys can be changed: the new
one encrypts, the old ones still decrypt what was written before. What was written without a key stays readable.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

from daemon.errors import WorkflowError
from daemon.settings import TemporalSettings

_ENCODING = b"binary/encrypted"
_KEY_ID = "encryption-key-id"
_NONCE_BYTES = 12


class EncryptingCodec(PayloadCodec):
    """Encrypts with `key`; decrypts also with the keys of `old`."""

    def __init__(self, key: bytes, old: Iterable[bytes] = ()) -> None:
        self._id = key_id(key)
        self._keys = {key_id(secret): AESGCM(secret) for secret in (*old, key)}

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decrypt; raise WorkflowError where the key is not known, or the bytes are not what was written."""
        return [self._decrypted(payload) for payload in payloads]

    def _encrypted(self, payload: Payload) -> Payload:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._keys[self._id].encrypt(nonce, payload.SerializeToString(), None)
        metadata = {"encoding": _ENCODING, _KEY_ID: self._id.encode()}
        return Payload(metadata=metadata, data=nonce + sealed)

    def _decrypted(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != _ENCODING:
            return payload
        name = payload.metadata.get(_KEY_ID, b"").decode()
        key = self._keys.get(name)
        if key is None:
            raise WorkflowError(
                f"this was encrypted with the key {name!r}, which is not among temporal.codec_key and "
                "codec_keys_old; add it to codec_keys_old"
            )
        try:
            opened = key.decrypt(payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:], None)
        except InvalidTag as error:
            raise WorkflowError(
                f"what Temporal stored under the key {name!r} is damaged; start the workflow again"
            ) from error
        return Payload.FromString(opened)


def key_id(key: bytes) -> str:
    """Return a name that tells keys apart and says nothing about them."""
    return hashlib.sha256(b"livevec codec" + key).hexdigest()[:12]


def codec(settings: TemporalSettings) -> EncryptingCodec | None:
    """Return the configured codec; None: payloads are stored as they are."""
    key = settings.codec_key.get_secret_value()
    if not key:
        return None
    old = [base64.b64decode(secret.get_secret_value()) for secret in settings.codec_keys_old]
    return EncryptingCodec(base64.b64decode(key), old)
