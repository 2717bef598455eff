"""Adaptive batching: one thread owns one bounded queue, and answers what waits there together.

It pays for models whose call costs much more than a row in it: `cost.pays` decides, by `cost.measure`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from serving.batching.cost import Company, Cost, LearnedCost
from serving.errors import DeadlineExceeded, InvalidInput, ModelFailed, ModelNotReady, QueueFull, ServingError
from serving.tensors import Batch, Own, Prediction

GONE = "this model is no longer served here"
DOUBT = 10  # so many requests are refused by an estimate until one is run to see whether it still holds

log = logging.getLogger("serving.batching")


def join(batches: Sequence[Batch]) -> Batch:
    """All rows of batches of one kind, in order. A single batch is not copied."""
    first = batches[0]
    if len(batches) == 1:
        return first
    if first.block is not None:
        return Batch(first.names, block=np.concatenate([batch.block for batch in batches]))
    columns = zip(*(batch.columns for batch in batches), strict=True)
    return Batch(first.names, tuple(np.concatenate(column) for column in columns))


def part(prediction: Prediction, rows: slice) -> Prediction:
    """Some rows of a prediction, as views."""
    probabilities, named, own = prediction.probabilities, prediction.named, prediction.own
    return Prediction(
        prediction.values[rows],
        None if probabilities is None else probabilities[rows],
        None if named is None else {name: values[rows] for name, values in named.items()},
        None if own is None else Own(own.form, {name: values[rows] for name, values in own.columns.items()}),
        None if prediction.tokens is None else prediction.tokens[rows],
    )


def whole(predictions: Sequence[Prediction]) -> Prediction:
    """Predictions of one version as one, in order; the reverse of `part`, but for the model's own form."""
    first = predictions[0]
    if len(predictions) == 1:
        return first
    probabilities = named = None
    if first.probabilities is not None:
        probabilities = np.concatenate([one.probabilities for one in predictions])
    if first.named is not None:
        outputs = [one.named for one in predictions if one.named is not None]
        named = {name: np.concatenate([one[name] for one in outputs]) for name in first.named}
    return Prediction(np.concatenate([one.values for one in predictions]), probabilities, named)


def kind(batch: Batch, params: Hashable = None) -> Hashable:
    """Equal for batches that `join` takes, and for requests that one call may answer.

    A batch with params of its own is of a kind of its own.
    """
    blocks = batch.columns if batch.block is None else (batch.block,)
    alone = None if batch.params is None else id(batch)
    return batch.block is None, batch.names, tuple((block.dtype, block.shape[1:]) for block in blocks), params, alone


@dataclass
class Call:
    """A call of the model for ``rows`` rows, of one caller or several; its times are those of `time.perf_counter`."""

    rows: int
    began_s: float
    ended_s: float = math.inf


@dataclass(eq=False)
class Waiting:
    """One caller in the queue. ``deadline`` is on the monotonic clock."""

    batch: Batch
    params: Hashable
    kind: Hashable
    deadline: float
    came: float = field(default_factory=time.monotonic)
    answer: Future[Prediction] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)
    call: Call | None = None


def _unseen(_value: float) -> None:
    """For whoever does not watch."""


class Batcher:
    """Answers callers of any thread together, in one thread of its own. `close` or `retire` must end it.

    ``predict`` is called with a batch, or with a batch and the params of a request that has some. ``cost`` is what was
    measured; how it changes is learned. To be watched it takes four functions, none of which may raise or block:
    ``on_batch`` (rows of each call of the model), ``on_dropped`` (rows that were not run since their caller had gone
    or could not be answered in time), ``on_waiting`` (rows that wait now) and ``on_waited`` (seconds that a request
    waited for its call): the ``observe``, ``inc`` and ``set`` of histograms, a counter and a gauge.
    """

    def __init__(
        self,
        predict: Callable[..., Prediction],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        cost: Cost,
        on_batch: Callable[[int], object] = _unseen,
        on_dropped: Callable[[int], object] = _unseen,
        on_waiting: Callable[[int], object] = _unseen,
        on_waited: Callable[[float], object] = _unseen,
    ) -> None:
        self._predict = predict
        self._max_batch_rows, self._max_queue_rows = max_batch_rows, max_queue_rows
        self._on_batch, self._on_dropped = on_batch, on_dropped
        self._on_waiting, self._on_waited = on_waiting, on_waited
        self._cost = LearnedCost(cost)
        self._company = Company()
        self._queue: list[Waiting] = []
        self._refused = 0  # requests since the last call that were not run because of an estimate
        self._retired = self._closed = False
        self._changed = threading.Condition()  # holds the queue and everything that is learned of who comes
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def cost(self) -> Cost:
        """What a call of the model takes by now."""
        return self._cost.now

    @property
    def waiting_rows(self) -> int:
        """Rows in the queue; those that are being run are not."""
        return sum(waiting.batch.rows for waiting in list(self._queue))

    def __call__(
        self,
        batch: Batch,
        *,
        params: Hashable = None,
        deadline_s: float | None = None,
        watch: Callable[[Call], object] | None = None,
    ) -> Prediction:
        """Block until ``batch`` is answered, its rows alone. ``deadline_s`` counts from now.

        ``watch`` is told of the call of the model that the rows were in, if there was one, before this returns.

        Raises `QueueFull`, `DeadlineExceeded`, `InvalidInput` (rows count in ``batch``), `ModelFailed`, which is logged
        here with its cause, `ModelNotReady` after `close`, or another `ServingError` of the model's own.
        """
        deadline = math.inf if deadline_s is None else time.monotonic() + deadline_s
        waiting = Waiting(batch, params, kind(batch, params), deadline)
        try:
            return self._wait(waiting, deadline_s)
        finally:
            if watch is not None and waiting.call is not None:
                watch(waiting.call)

    def retire(self) -> None:
        """For a version that is no longer live: the thread answers what waits and ends, which is not waited for.

        Callers that still come are answered one by one on their own threads, and see whatever the model raises.
        """
        with self._changed:
            self._retired = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the call that it is in. What waits, and whoever still comes, gets `ModelNotReady`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # --- the callers' side ---

    def _wait(self, waiting: Waiting, deadline_s: float | None) -> Prediction:
        if not self._enqueue(waiting):
            return self._call([waiting])
        try:
            return waiting.answer.result(None if deadline_s is None else max(0.0, waiting.deadline - time.monotonic()))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {deadline_s:g} s") from None
        finally:
            self._withdraw(waiting)

    def _enqueue(self, waiting: Waiting) -> bool:
        """False when there is no thread any more to answer."""
        with self._changed:
            if self._retired:
                return False
            if self._closed:
                raise ModelNotReady(GONE)
            rows = self.waiting_rows
            # A request larger than the queue gets in when it is the only one.
            if rows and rows + waiting.batch.rows > self._max_queue_rows:
                raise QueueFull(f"{rows} rows wait already, and at most {self._max_queue_rows} may")
            self._company.came(waiting.kind, self.cost.fixed_s)
            self._queue.append(waiting)
            self._on_waiting(rows + waiting.batch.rows)
            self._changed.notify()
        return True

    def _withdraw(self, waiting: Waiting) -> None:
        """The caller goes. Without an answer its rows need not be run, and make room for others now."""
        if waiting.answer.done():
            return
        with self._changed:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._on_waiting(self.waiting_rows)
                self._on_dropped(waiting.batch.rows)

    # --- the thread's side ---

    def _work(self) -> None:
        try:
            while joint := self._take():
                joint[0].context.run(self._answer, joint)  # so what is logged meanwhile is known to be of a request
                del joint  # nobody's rows stay in memory while the thread waits
        finally:  # nobody waits for a thread that is not there
            with self._changed:
                self._closed = True
                self._fail(self._queue, ModelNotReady(GONE))
                self._queue = []

    def _take(self) -> list[Waiting]:
        """Wait for callers that one call can answer and take them off the queue. Empty when the thread must end."""
        waited_in_vain = False
        with self._changed:
            while not self._closed:
                self._drop_late()
                if not self._queue:
                    if self._retired:
                        return []
                    self._changed.wait()
                    continue
                joint, full = self._joinable()
                go = full or self._retired or waited_in_vain
                hold_s = 0.0 if go else self._hold_s(joint)
                self._company.await_one_more(joint[0].kind, len(joint), held=hold_s > 0)
                if hold_s <= 0:
                    taken = set(joint)
                    others = [waiting for waiting in self._queue if waiting not in taken]
                    self._on_waiting(sum(waiting.batch.rows for waiting in others))
                    self._say_how_long(joint)
                    self._queue = others
                    return joint
                waited_in_vain = not self._changed.wait(hold_s)
            return []

    def _say_how_long(self, joint: Sequence[Waiting]) -> None:
        now = time.monotonic()
        for waiting in joint:
            self._on_waited(now - waiting.came)

    def _joinable(self) -> tuple[list[Waiting], bool]:
        """The first caller and those of its kind behind it, in order; and whether no more can be with them.

        They are full at ``max_batch_rows``, and when one more would make somebody's answer late.
        """
        first, now = self._queue[0], time.monotonic()
        joint, rows, deadline = [first], first.batch.rows, first.deadline
        for waiting in self._queue[1:]:
            if waiting.kind != first.kind:
                continue
            rows, deadline = rows + waiting.batch.rows, min(deadline, waiting.deadline)
            if rows > self._max_batch_rows or now + self.cost.of(rows) > deadline:
                return joint, True
            joint.append(waiting)
        return joint, rows >= self._max_batch_rows

    def _hold_s(self, joint: Sequence[Waiting]) -> float:
        """How long to wait for one more caller; 0 when that costs more than it gains.

        It gains that caller a call's fixed part, less the wait: without it, it comes while the others are being run and
        waits for that. It costs the wait to everyone who is here. So it pays while (callers + 1) × wait < fixed part.
        """
        worth_s = self.cost.fixed_s / (len(self._queue) + 1)
        if self._company.expected_s(len(joint)) >= worth_s:
            return 0.0
        rows = sum(waiting.batch.rows for waiting in joint) + 1
        spare_s = min(waiting.deadline for waiting in joint) - time.monotonic() - self.cost.of(rows)
        return min(worth_s, spare_s / 2)

    def _drop_late(self) -> None:
        """Take off the queue whose deadline has passed, or will have by the time that they could be answered.

        Of the latter some are run all the same, since an estimate that is wrong must not refuse for ever.
        """
        now = time.monotonic()
        for waiting in list(self._queue):
            passed = now >= waiting.deadline
            if passed or (now + self.cost.of(waiting.batch.rows) > waiting.deadline and self._refused < DOUBT):
                self._refused += not passed
                self._queue.remove(waiting)
                self._on_waiting(self.waiting_rows)
                self._drop(waiting)

    def _drop(self, waiting: Waiting) -> None:
        waiting.answer.set_exception(DeadlineExceeded("the model could not answer in time and was not asked"))
        self._on_dropped(waiting.batch.rows)

    def _answer(self, joint: Sequence[Waiting]) -> None:
        """Give everyone an answer or an error, whatever the model does."""
        try:
            prediction = self._call(joint)
            starts = np.cumsum([0, *(waiting.batch.rows for waiting in joint)]).tolist()
            parts = [part(prediction, slice(*ends)) for ends in pairwise(starts)]
        except InvalidInput as err:
            self._answer_singly(joint, err)
        except ServingError as err:
            self._fail(joint, err)
        except BaseException as err:  # of any kind: the next callers need this thread
            log.exception("the model failed on %d requests", len(joint))
            failed = ModelFailed("the model failed on this input")
            failed.__cause__ = err
            self._fail(joint, failed)
        else:
            for waiting, answer in zip(joint, parts, strict=True):
                waiting.answer.set_result(answer)

    def _answer_singly(self, joint: Sequence[Waiting], err: InvalidInput) -> None:
        """One of them sent what does not fit: only that one hears of it, with its own row."""
        if len(joint) == 1:
            self._fail(joint, err)
            return
        for waiting in joint:
            if time.monotonic() >= waiting.deadline:
                self._drop(waiting)
            else:
                self._answer([waiting])

    def _fail(self, joint: Sequence[Waiting], err: ServingError) -> None:
        for waiting in joint:
            waiting.answer.set_exception(err)

    def _call(self, joint: Sequence[Waiting]) -> Prediction:
        """One call of the model for everyone; they are told when it was."""
        batch = join([waiting.batch for waiting in joint])
        call = Call(batch.rows, time.perf_counter())
        for waiting in joint:
            waiting.call = call
        try:
            return self._run(batch, joint[0].params)
        finally:
            call.ended_s = time.perf_counter()

    def _run(self, batch: Batch, params: Hashable) -> Prediction:
        """One call of the model. Raises what it raises, and `ModelFailed` when it answers other rows than asked."""
        self._refused = 0
        self._on_batch(batch.rows)
        started = time.perf_counter()
        prediction = self._predict(batch) if params is None else self._predict(batch, params)
        seconds = time.perf_counter() - started
        own = prediction.own.columns if prediction.own is not None else {}
        answers = (prediction.values, prediction.probabilities, *(prediction.named or {}).values(), *own.values())
        if wrong := [len(answer) for answer in answers if answer is not None and len(answer) != batch.rows]:
            log.error("the model answered %d rows for %d", wrong[0], batch.rows)
            raise ModelFailed("the model answered another number of rows than it was asked for")
        self._cost.saw(batch.rows, seconds)
        return prediction
