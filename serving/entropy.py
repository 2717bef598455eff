"""Random bytes for ids, fetched from the system many at a time.

Each fetch gives the interpreter up to another thread, which on a busy worker costs far more than the fetch itself.
"""

from __future__ import annotations

import os
from collections import deque

ID_BYTES = 16
FETCHED_IDS = 256

_waiting: deque[bytes] = deque()
os.register_at_fork(after_in_child=_waiting.clear)  # or parent and child would make the same ids


def random_id() -> bytes:
    """`ID_BYTES` bytes that nobody was given before. Safe in threads and across forks."""
    while True:
        try:
            return _waiting.popleft()
        except IndexError:
            fetched = os.urandom(ID_BYTES * FETCHED_IDS)
            _waiting.extend(fetched[at : at + ID_BYTES] for at in range(0, len(fetched), ID_BYTES))
