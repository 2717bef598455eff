"""Batching: who is answered together, who waits how long, and what each caller hears when something goes wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import mean, median
from typing import Any

import numpy as np
import pytest

from serving.batching import Batcher
from serving.batching.cost import Company, Cost, LearnedCost, measure, pays
from serving.errors import DeadlineExceeded, InvalidInput, ModelFailed, ModelNotReady, QueueFull, UnknownModel
from serving.tensors import Batch, Prediction

CHEAP = Cost(0.0, 0.0, 64)
PATIENCE_S = 10.0  # for what must happen; a test that waits so long has failed


def rows_of(*values: float) -> Batch:
    return Batch(("x",), block=np.array(values, dtype=np.float64).reshape(-1, 1))


class Model:
    """Doubles ``x``, takes its time, and records its batches. It can be stopped in its next call."""

    def __init__(self, fixed_s: float = 0.0, per_row_s: float = 0.0) -> None:
        self.fixed_s, self.per_row_s = fixed_s, per_row_s
        self.batches: list[list[Any]] = []
        self.asked, self.free = threading.Event(), threading.Event()
        self.free.set()

    def __call__(self, batch: Batch, params: Any = None) -> Prediction:
        x = batch.columns[0]
        self.batches.append(x.tolist())
        self.asked.set()
        assert self.free.wait(PATIENCE_S)
        if self.fixed_s or self.per_row_s:
            time.sleep(self.fixed_s + self.per_row_s * batch.rows)
        values = x * 2
        if params is not None:
            values = values + params
        return Prediction(values, np.stack([values, -values], axis=1), {"double": values, "half": values / 4})

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


class Crowd:
    """Batchers, callers on threads of their own, and what they counted."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.batchers: list[Batcher] = []
        self.batch_rows: list[int] = []
        self.dropped: list[int] = []
        self.left_waiting: list[int] = []
        self.waited_s: list[float] = []

    def batcher(self, model: Callable[..., Prediction], cost: Cost = CHEAP, **limits: int) -> Batcher:
        limits = {"max_batch_rows": 64, "max_queue_rows": 1000, **limits}
        watchers = {
            "on_batch": self.batch_rows.append,
            "on_dropped": self.dropped.append,
            "on_waiting": self.left_waiting.append,
            "on_waited": self.waited_s.append,
        }
        self.batchers.append(Batcher(model, cost=cost, **limits, **watchers))
        return self.batchers[-1]

    def busy(self, batcher: Batcher, model: Model) -> Future[Prediction]:
        """Have the model stop in a call, so that whoever comes next waits."""
        model.free.clear()
        model.asked.clear()
        first = self.pool.submit(batcher, rows_of(-1))
        assert model.asked.wait(PATIENCE_S)
        return first

    def queue(self, batcher: Batcher, batch: Batch, **how: Any) -> Future[Prediction]:
        """A caller, once it waits in the queue."""
        before = batcher.waiting_rows
        caller = self.pool.submit(batcher, batch, **how)
        until(lambda: batcher.waiting_rows == before + batch.rows)
        return caller


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def values_of(caller: Future[Prediction]) -> list[Any]:
    return caller.result(PATIENCE_S).values.tolist()


def in_loops(pool: ThreadPoolExecutor, callers: int, times: int, ask: Callable[[int, int], object]) -> None:
    """Callers that each ask again as soon as they are answered."""

    def loop(caller: int) -> None:
        for turn in range(times):
            ask(caller, turn)

    for done in [pool.submit(loop, caller) for caller in range(callers)]:
        done.result(PATIENCE_S)


def added_s(batcher: Batcher, model: Model, times: int) -> float:
    """What a lone caller waits longer through ``batcher`` than with the model itself; interleaved: equal noise."""
    alone, through = [], []
    for turn in range(times):
        for seconds, ask in ((alone, model), (through, batcher)):
            started = time.perf_counter()
            ask(rows_of(turn))
            seconds.append(time.perf_counter() - started)
    return median(through) - median(alone)


def threads() -> set[threading.Thread]:
    """Those of batchers, in this process."""
    return {thread for thread in threading.enumerate() if thread.name == "batcher"}


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """When all is over no thread may be left but what was there before."""
    before = threads()
    with ThreadPoolExecutor(80) as pool:
        crowd = Crowd(pool)
        yield crowd
        for batcher in crowd.batchers:
            batcher.close()
    until(lambda: threads() <= before)


# --- adapting to load ------------------------------------------------------------------------------------------------


def test_a_lone_caller_does_not_wait_for_company(crowd: Crowd) -> None:
    model = Model(fixed_s=0.03)
    batcher = crowd.batcher(model, Cost(0.03, 0.0, 64))
    assert added_s(batcher, model, 20) < 0.008  # waiting would have added 15 ms
    assert set(crowd.batch_rows) == {1}


def test_sixty_four_callers_are_answered_together_and_each_with_its_own(crowd: Crowd) -> None:
    model = Model(fixed_s=0.01)
    batcher = crowd.batcher(model, Cost(0.01, 0.0, 64))

    def ask(caller: int, turn: int) -> None:
        rows = rows_of(*(caller * 1000 + turn + np.arange(1 + caller % 3) / 8))
        got = batcher(rows, deadline_s=PATIENCE_S)
        expected = rows.block[:, 0] * 2  # type: ignore[index]
        np.testing.assert_array_equal(got.values, expected)
        np.testing.assert_array_equal(got.probabilities, np.stack([expected, -expected], axis=1))  # type: ignore[arg-type]
        assert got.named is not None
        np.testing.assert_array_equal(got.named["half"], expected / 4)

    in_loops(crowd.pool, 64, 12, ask)
    assert sum(model.sizes) == sum(crowd.batch_rows) == 12 * sum(1 + caller % 3 for caller in range(64))
    assert max(model.sizes) <= 64
    assert mean(model.sizes[len(model.sizes) // 2 :]) > 16
    assert crowd.dropped == []


def test_callers_who_come_at_the_same_time_are_waited_for(crowd: Crowd) -> None:
    """Without waiting, the one that comes first would be run alone, and the others after it."""
    model = Model(fixed_s=0.02)
    batcher = crowd.batcher(model, Cost(0.02, 0.0, 64))
    in_loops(crowd.pool, 4, 25, lambda caller, _: batcher(rows_of(caller)))
    assert mean(model.sizes[len(model.sizes) // 2 :]) > 2.5


def test_once_the_others_are_gone_nobody_waits_for_them(crowd: Crowd) -> None:
    model = Model(fixed_s=0.03)
    batcher = crowd.batcher(model, Cost(0.03, 0.0, 64))
    in_loops(crowd.pool, 8, 10, lambda caller, _: batcher(rows_of(caller)))
    for turn in range(10):
        batcher(rows_of(turn))
    assert added_s(batcher, model, 15) < 0.008


def test_no_batch_has_more_rows_than_it_may(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model, max_batch_rows=5)
    crowd.busy(batcher, model)
    callers = [crowd.queue(batcher, rows_of(caller, caller)) for caller in range(6)]
    time.sleep(0.05)
    model.free.set()
    assert [values_of(caller) for caller in callers] == [[2.0 * caller] * 2 for caller in range(6)]
    assert model.sizes[1:] == [4, 4, 4]
    assert crowd.left_waiting == [1, 0, 2, 4, 6, 8, 10, 12, 8, 4, 0]
    assert len(crowd.waited_s) == 7
    assert crowd.waited_s[0] >= 0
    assert crowd.waited_s[-1] >= 0.05


def test_a_request_larger_than_a_batch_runs_alone(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model, max_batch_rows=3)
    crowd.busy(batcher, model)
    callers = [crowd.queue(batcher, rows_of(*range(rows))) for rows in (1, 7, 1)]
    model.free.set()
    assert [len(values_of(caller)) for caller in callers] == [1, 7, 1]
    assert model.sizes[1:] == [1, 7, 1]


def test_a_lone_request_is_neither_copied_nor_cut(crowd: Crowd) -> None:
    seen = []

    def model(batch: Batch) -> Prediction:
        seen.append(batch)
        return Prediction(batch.columns[0])

    rows = rows_of(1, 2)
    got = crowd.batcher(model)(rows)
    assert seen == [rows]
    assert np.shares_memory(got.values, rows.block)  # type: ignore[arg-type]


# --- deadlines and callers who have gone -----------------------------------------------------------------------------


def test_rows_whose_caller_has_gone_are_not_run(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model, max_queue_rows=4)
    first = crowd.busy(batcher, model)
    stays = crowd.queue(batcher, rows_of(1))
    with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
        batcher(rows_of(2, 3), deadline_s=0.05)  # although the model is still busy
    assert crowd.dropped == [2]
    also = crowd.queue(batcher, rows_of(4, 5, 6))  # there is room again
    model.free.set()
    assert [values_of(caller) for caller in (first, stays, also)] == [[-2], [2], [8, 10, 12]]
    assert model.batches == [[-1], [1, 4, 5, 6]]


def test_a_caller_does_not_wait_longer_than_its_deadline_for_a_call_that_runs(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model)
    model.free.clear()
    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded):
        batcher(rows_of(1), deadline_s=0.3)
    assert 0.3 <= time.perf_counter() - started < 3
    model.free.set()
    assert batcher(rows_of(2)).values.tolist() == [4]
    assert crowd.dropped == []  # it was run


def test_what_cannot_be_answered_in_time_is_not_run_but_now_and_then(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model, Cost(60.0, 0.0, 64))
    started = time.perf_counter()
    for _ in range(10):
        with pytest.raises(DeadlineExceeded, match="not asked"):
            batcher(rows_of(1), deadline_s=30)
    assert time.perf_counter() - started < 5
    assert (model.batches, crowd.dropped) == ([], [1] * 10)
    assert batcher(rows_of(1), deadline_s=30).values.tolist() == [2]  # the estimate was wrong, as is seen now
    assert batcher.cost.fixed_s < 60


def test_a_deadline_keeps_a_batch_small(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model, Cost(0.0, 0.5, 64))
    crowd.busy(batcher, model)
    callers = [crowd.queue(batcher, rows_of(caller), deadline_s=PATIENCE_S) for caller in range(40)]
    model.free.set()
    assert [values_of(caller) for caller in callers] == [[2 * caller] for caller in range(40)]
    assert model.sizes[1] <= 20


# --- the bounded queue -----------------------------------------------------------------------------------------------


def test_a_full_queue_sends_callers_away(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model, max_queue_rows=5)
    crowd.busy(batcher, model)
    waiting = [crowd.queue(batcher, rows_of(1, 2)), crowd.queue(batcher, rows_of(3, 4))]
    with pytest.raises(QueueFull, match="4 rows wait already") as refused:
        batcher(rows_of(5, 6))
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "queue_full", 1)
    waiting.append(crowd.queue(batcher, rows_of(7)))  # up to the limit
    model.free.set()
    assert [values_of(caller) for caller in waiting] == [[2, 4], [6, 8], [14]]
    assert batcher.waiting_rows == 0


def test_a_request_larger_than_the_queue_is_not_refused_for_ever(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model, max_queue_rows=2)
    assert len(batcher(rows_of(*range(9))).values) == 9
    crowd.busy(batcher, model)
    one = crowd.queue(batcher, rows_of(1))
    with pytest.raises(QueueFull):
        batcher(rows_of(*range(9)))
    model.free.set()
    assert values_of(one) == [2]


# --- requests that do not fit together -------------------------------------------------------------------------------


def test_params_never_mix(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model)
    crowd.busy(batcher, model)
    callers = [crowd.queue(batcher, rows_of(caller), params=100 * (caller % 2) or None) for caller in range(6)]
    model.free.set()
    assert [values_of(caller)[0] for caller in callers] == [0, 102, 4, 106, 8, 110]
    assert model.batches[1:] == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    "other",
    [
        Batch(("y",), block=np.zeros((1, 1))),
        Batch(("x",), block=np.zeros((1, 1), dtype=np.float32)),
        Batch(("x",), (np.zeros(1),)),
        Batch(("x",), (np.zeros((1, 2)),)),
        Batch(("x", "y"), block=np.zeros((1, 2))),
    ],
    ids=["name", "type", "columns", "shape", "width"],
)
def test_only_equals_are_joined_and_nobody_starves(crowd: Crowd, other: Batch) -> None:
    model = Model()
    batcher = crowd.batcher(model)
    crowd.busy(batcher, model)
    crowd.queue(batcher, rows_of(1))
    odd = crowd.queue(batcher, other)
    last = crowd.queue(batcher, rows_of(2))
    model.free.set()
    assert np.shape(values_of(odd))[0] == 1
    assert values_of(last) == [4]
    assert model.sizes[1:] == [2, 1]


def test_the_oldest_is_always_next(crowd: Crowd) -> None:
    """However many of another kind come."""
    model = Model()
    batcher = crowd.batcher(model, max_batch_rows=2)
    crowd.busy(batcher, model)
    order = [1, 2, "odd", 3, 4, 5]
    callers = [
        crowd.queue(batcher, rows_of(99) if who == "odd" else rows_of(float(who)), params=0 if who == "odd" else None)
        for who in order
    ]
    model.free.set()
    for caller in callers:
        caller.result(PATIENCE_S)
    assert model.batches[1:] == [[1, 2], [99], [3, 4], [5]]


def test_columns_of_texts_and_tensors_are_joined(crowd: Crowd) -> None:
    model = Model()
    seen: list[Batch] = []

    def joined(batch: Batch) -> Prediction:
        seen.append(batch)
        if batch.names == ("x",):
            return model(batch)
        words, pictures = batch.columns
        return Prediction(np.array([f"{w}{p.sum():g}" for w, p in zip(words, pictures, strict=True)], dtype=object))

    def request(*words: str | None) -> Batch:
        return Batch(("w", "p"), (np.array(words, dtype=object), np.ones((len(words), 2, 3))))

    batcher = crowd.batcher(joined)
    crowd.busy(batcher, model)
    callers = [crowd.queue(batcher, request("a")), crowd.queue(batcher, request("long", None))]
    model.free.set()
    assert [values_of(caller) for caller in callers] == [["a6"], ["long6", "None6"]]
    assert [batch.rows for batch in seen] == [1, 3]


# --- models that fail ------------------------------------------------------------------------------------------------


class Failing(Model):
    """Does something else than answer when ``when`` is among its rows."""

    def __init__(self, failing: Callable[[np.ndarray], Prediction], when: float = 13) -> None:
        super().__init__()
        self.failing, self.when = failing, when

    def __call__(self, batch: Batch, params: Any = None) -> Prediction:
        prediction = super().__call__(batch, params)
        return self.failing(batch.columns[0]) if self.when in batch.columns[0] else prediction


def ask_three(crowd: Crowd, model: Failing) -> tuple[Batcher, list[Future[Prediction]]]:
    """Three callers in one batch, the second of whom has the row that makes the model fail."""
    batcher = crowd.batcher(model)
    crowd.busy(batcher, model)
    callers = [crowd.queue(batcher, rows_of(*rows)) for rows in ((1, 2), (3, 13), (5,))]
    model.free.set()
    return batcher, callers


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: Prediction(x[1:]),
        lambda x: Prediction(np.append(x, 0)),
        lambda x: Prediction(x, probabilities=np.zeros((len(x) - 1, 2))),
        lambda x: Prediction(x, named={"a": x, "b": x[:1]}),
        lambda _: Prediction(np.float64(1)),
        lambda _: None,
    ],
    ids=["lost", "added", "probabilities", "named", "scalar", "nothing"],
)
def test_a_lost_row_fails_everyone_in_the_batch(crowd: Crowd, answer: Callable[[np.ndarray], Prediction]) -> None:
    batcher, callers = ask_three(crowd, Failing(answer))
    assert [type(caller.exception(PATIENCE_S)) for caller in callers] == [ModelFailed] * 3
    with pytest.raises(ModelFailed):
        batcher(rows_of(13, 1))  # alone, too
    assert batcher(rows_of(1)).values.tolist() == [2]


@pytest.mark.parametrize("raised", [ValueError("secret"), MemoryError(), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_whatever_a_model_raises_fails_its_callers_and_is_logged_once(
    crowd: Crowd, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(x: np.ndarray) -> Prediction:
        raise raised

    batcher, callers = ask_three(crowd, Failing(failing))
    errors = [caller.exception(PATIENCE_S) for caller in callers]
    assert [type(err) for err in errors] == [ModelFailed] * 3
    assert all("secret" not in str(err) and err.__cause__ is raised for err in errors if err)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [raised]
    assert batcher(rows_of(1)).values.tolist() == [2]


def test_an_error_that_callers_may_read_reaches_them(crowd: Crowd, caplog: pytest.LogCaptureFixture) -> None:
    def failing(x: np.ndarray) -> Prediction:
        raise UnknownModel("no such head")

    _, callers = ask_three(crowd, Failing(failing))
    assert [str(caller.exception(PATIENCE_S)) for caller in callers] == ["no such head"] * 3
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_only_the_guilty_one_hears_of_its_invalid_input(crowd: Crowd) -> None:
    def failing(x: np.ndarray) -> Prediction:
        raise InvalidInput("thirteen", row=x.tolist().index(13), column="x")

    model = Failing(failing)
    batcher, callers = ask_three(crowd, model)
    assert values_of(callers[0]) == [2, 4]
    assert values_of(callers[2]) == [10]
    with pytest.raises(InvalidInput, match="row 1, column 'x': thirteen"):  # in the batch it was row 3
        callers[1].result(PATIENCE_S)
    assert model.batches[1:] == [[1, 2, 3, 13, 5], [1, 2], [3, 13], [5]]
    with pytest.raises(InvalidInput, match="row 0"):
        batcher(rows_of(13))


def test_run_singly_the_late_are_dropped(crowd: Crowd) -> None:
    def failing(x: np.ndarray) -> Prediction:
        time.sleep(0.3)
        raise InvalidInput("thirteen")

    model = Failing(failing)
    batcher = crowd.batcher(model)
    crowd.busy(batcher, model)
    guilty = crowd.queue(batcher, rows_of(13))
    late = crowd.queue(batcher, rows_of(5), deadline_s=0.25)
    model.free.set()
    assert isinstance(late.exception(PATIENCE_S), DeadlineExceeded)
    assert isinstance(guilty.exception(PATIENCE_S), InvalidInput)
    until(lambda: crowd.dropped == [1])
    assert [5] not in model.batches


# --- the end ---------------------------------------------------------------------------------------------------------


def test_closing_fails_what_waits_and_ends_the_thread(crowd: Crowd) -> None:
    model = Model()
    batcher = crowd.batcher(model)
    first = crowd.busy(batcher, model)
    waiting = [crowd.queue(batcher, rows_of(1)), crowd.queue(batcher, rows_of(2))]
    closing = crowd.pool.submit(batcher.close)
    time.sleep(0.02)
    model.free.set()
    closing.result(PATIENCE_S)
    assert values_of(first) == [-2]  # what runs is answered
    for caller in waiting:
        assert isinstance(caller.exception(PATIENCE_S), ModelNotReady)
    with pytest.raises(ModelNotReady, match="no longer served"):
        batcher(rows_of(3))
    batcher.close()  # twice is no harm
    assert model.batches == [[-1]]


def test_a_retired_one_answers_what_waits_and_whoever_still_comes(crowd: Crowd) -> None:
    model, before = Model(), threads()
    batcher = crowd.batcher(model)
    crowd.busy(batcher, model)
    waiting = [crowd.queue(batcher, rows_of(1)), crowd.queue(batcher, rows_of(2))]
    batcher.retire()
    model.free.set()
    assert [values_of(caller) for caller in waiting] == [[2], [4]]
    until(lambda: threads() <= before)
    assert batcher(rows_of(3)).values.tolist() == [6]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_died(crowd: Crowd) -> None:
    """A watcher that raises breaks its promise; still no caller may hang."""

    def on_waited(seconds: float) -> None:
        raise RuntimeError

    batcher = Batcher(Model(), max_batch_rows=8, max_queue_rows=8, cost=CHEAP, on_waited=on_waited)
    with pytest.raises(ModelNotReady):
        batcher(rows_of(1))
    with pytest.raises(ModelNotReady):
        batcher(rows_of(2))
    batcher.close()


# --- what is learned -------------------------------------------------------------------------------------------------


def test_cost_is_learned_when_the_model_changes() -> None:
    learned = LearnedCost(Cost(0.001, 0.0001, 64))
    rng = np.random.default_rng(0)
    for rows in rng.integers(1, 64, 60).tolist():
        learned.saw(rows, (0.02 + 0.001 * rows) * rng.uniform(0.9, 1.1))
    assert learned.now.fixed_s == pytest.approx(0.02, rel=0.3)
    assert learned.now.per_row_s == pytest.approx(0.001, rel=0.3)
    for rows in rng.integers(1, 64, 60).tolist():
        learned.saw(rows, 0.002)
    assert learned.now.fixed_s == pytest.approx(0.002, rel=0.3)
    assert learned.now.per_row_s < 0.0001


def test_calls_of_one_size_move_the_whole_cost() -> None:
    learned = LearnedCost(Cost(0.008, 0.002, 64))
    for _ in range(200):
        learned.saw(1, 0.02)
    assert learned.now.of(1) == pytest.approx(0.02, rel=0.01)
    assert learned.now.per_row_s > 0 or learned.now.fixed_s == pytest.approx(0.02, rel=0.01)
    for _ in range(200):
        learned.saw(32, 0.04)
    assert learned.now.of(32) == pytest.approx(0.04, rel=0.01)


def test_one_slow_call_counts_only_so_much() -> None:
    learned = LearnedCost(Cost(0.01, 0.0, 64))
    for _ in range(20):
        learned.saw(1, 0.01)
    learned.saw(1, 10.0)
    assert learned.now.of(1) < 0.02


def test_a_cost_is_never_negative() -> None:
    learned = LearnedCost(Cost(0.0, 0.0, 1))
    for rows, seconds in ((1, 0.5), (64, 0.0), (1, 0.5), (64, 0.9), (1, 0.0)) * 5:
        learned.saw(rows, seconds)
        assert min(learned.now.fixed_s, learned.now.per_row_s) >= 0


def test_a_batcher_learns_while_it_serves(crowd: Crowd) -> None:
    model = Model(fixed_s=0.002)
    batcher = crowd.batcher(model, Cost(0.05, 0.0, 64))
    for turn in range(20):
        batcher(rows_of(turn))
    assert batcher.cost.of(1) < 0.025
    model.fixed_s = 0.05
    for turn in range(20):
        batcher(rows_of(turn))
    assert batcher.cost.of(1) > 0.03


def test_company_is_known_for_each_number_of_callers() -> None:
    company = Company()
    assert company.expected_s(1) == float("inf")
    for _ in range(20):
        company.await_one_more("a", 1, held=True)
        company.came("b", 1.0)  # of another kind: no company
        company.came("a", 0.001)  # the second, at once
        company.await_one_more("a", 2, held=False)
        time.sleep(0.002)
        company.came("a", 0.001)  # a third, too late
        company.came("a", 1.0)  # that nobody has awaited
    assert company.expected_s(1) < 0.001
    assert company.expected_s(2) == pytest.approx(0.001)
    assert company.expected_s(3) == float("inf")


# --- whether it pays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "worth"),
    [
        (Cost(0.005, 0.00002, 64), True),  # a forest as scikit-learn runs it
        (Cost(0.000017, 0.000001, 64), False),  # the same, compiled
        (Cost(0.0009, 0.0, 64), False),  # below what handing over is small against
        (Cost(0.001, 0.0, 64), True),
        (Cost(0.002, 0.075, 6), False),  # a deep network over images: every row costs the same
        (Cost(0.0, 0.0, 1), False),
    ],
)
def test_batching_pays_where_a_call_costs_more_than_its_rows(cost: Cost, worth: bool) -> None:
    assert pays(cost) is worth


def test_cost_is_measured_with_single_rows_and_batches() -> None:
    model = Model(fixed_s=0.01, per_row_s=0.001)
    cost = measure(model, rows_of(1, 2, 3))
    assert 0.005 < cost.fixed_s < 0.03
    assert 0.0005 < cost.per_row_s < 0.003
    assert set(model.sizes) == {1, cost.rows}
    assert {value for batch in model.batches for value in batch} == {1, 2, 3}
    assert pays(cost)


def test_a_slow_model_is_measured_with_few_rows() -> None:
    model = Model(per_row_s=0.05)
    cost = measure(model, Batch(("x",), (np.arange(3.0),)))
    assert 2 <= cost.rows <= 10
    assert not pays(cost)


def test_measuring_raises_what_the_model_raises() -> None:
    def model(batch: Batch) -> Prediction:
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        measure(model, rows_of(1))


def test_a_cost_survives_json() -> None:
    cost = Cost(0.005, 0.00002, 64)
    assert Cost.from_json(cost.as_json()) == cost
