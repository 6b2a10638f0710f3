"""Whether live changes are about: told by the daemons, beside the data, to those who work on the index at leisure."""

from typing import Any, cast

from daemon.index.connection import Client, translated
from daemon.index.layout import LIVE_KEY

_ABOUT_MS = 2_000


async def tell_live_changes(client: Client) -> None:
    """Live changes are about now, and for the next two seconds."""
    with translated():
        await cast(Any, client).set(LIVE_KEY, b"1", px=_ABOUT_MS)


async def live_changes_are_about(client: Client) -> bool:
    """Whether a daemon told so within the last two seconds."""
    with translated():
        return bool(await cast(Any, client).exists(LIVE_KEY))
