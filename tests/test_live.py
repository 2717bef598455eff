"""What answers for a version: no more slow calls at once than there are processors."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from serving.errors import DeadlineExceeded
from serving.live import _in_turn
from serving.tensors import Batch, Prediction

ROW = Batch(("x",), (np.zeros(1),))


def test_calls_wait_for_their_turn() -> None:
    turns, at_once, most = threading.BoundedSemaphore(2), 0, 0
    lock = threading.Lock()

    def predict(batch: Batch) -> Prediction:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return Prediction(batch.columns[0])

    threads = [threading.Thread(target=_in_turn, args=(turns, None, predict, ROW)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_whose_turn_does_not_come_is_told_so() -> None:
    turns = threading.BoundedSemaphore(1)
    turns.acquire()
    with pytest.raises(DeadlineExceeded, match=r"busy with others for 0\.01 s"):
        _in_turn(turns, 0.01, lambda batch: Prediction(batch.columns[0]), ROW)


def test_a_call_that_fails_gives_its_turn_back() -> None:
    turns = threading.BoundedSemaphore(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            _in_turn(turns, 0.01, lambda _: Prediction(np.array([1 // 0])), ROW)
    assert turns.acquire(blocking=False)
