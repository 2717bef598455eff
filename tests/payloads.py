"""Seeded payloads in MLflow's scoring protocol: good ones in every format, and ones with a single thing wrong."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from scored import Scored

JSON, CSV = "application/json", "text/csv"
Rows = list[list[Any]]


class Payload(NamedTuple):
    """A body, what it is called, and how its rows are written."""

    kind: str
    form: str
    body: bytes
    content_type: str = JSON


def payloads(model: Scored, count: int, seed: int) -> Iterator[Payload]:
    """``count`` payloads for ``model``; the same ones for the same seed."""
    chance = random.Random(f"{seed} {model.name}")
    makers = BOTH + (NAMED if model.names else ())
    for number in range(count):
        rows = [list(chance.choice(model.rows)) for _ in range(chance.choice((1, 2, 3, 7)))]
        make = makers[number % len(makers)]
        yield make(model, rows, chance)


# --- formats ---------------------------------------------------------------------------------------------------------


def split(names: Any, rows: Rows) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(names), "data": rows}}


def records(names: Any, rows: Rows) -> dict[str, Any]:
    return {"dataframe_records": [dict(zip(names, row, strict=True)) for row in rows]}


def instances(names: Any, rows: Rows) -> dict[str, Any]:
    return {"instances": [dict(zip(names, row, strict=True)) for row in rows]}


def inputs(names: Any, rows: Rows) -> dict[str, Any]:
    return {"inputs": {name: [row[place] for row in rows] for place, name in enumerate(names)}}


def table(names: Any, rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue().encode()


FORMS: dict[str, Callable[[Any, Rows], dict[str, Any]]] = {
    "split": split,
    "records": records,
    "instances": instances,
    "inputs": inputs,
}


def written(kind: str, form: str, names: Any, rows: Rows, **more: Any) -> Payload:
    if form == "csv":
        return Payload(kind, form, table(names, rows), CSV)
    return Payload(kind, form, json.dumps({**FORMS[form](names, rows), **more}).encode())


def names_of(model: Scored) -> tuple[str, ...]:
    return model.names or tuple(f"c{place}" for place in range(len(model.rows[0])))


# --- good ones and wrong ones ----------------------------------------------------------------------------------------

Maker = Callable[[Scored, Rows, random.Random], Payload]


def good(form: str) -> Maker:
    return lambda model, rows, _: written("good", form, names_of(model), rows)


def nested(key: str) -> Maker:
    """Rows as plain lists, in the signature's order."""
    kind = "lists"
    return lambda model, rows, _: Payload(kind if model.names else "good", key, json.dumps({key: rows}).encode())


def any_form(change: Callable[[Scored, Rows, random.Random], tuple[str, Any, Rows]]) -> Maker:
    """A change of names or rows, in any of the formats."""

    def make(model: Scored, rows: Rows, chance: random.Random) -> Payload:
        kind, names, changed = change(model, rows, chance)
        forms = [*FORMS, "csv"] if model.names else ["split", "records"]
        return written(kind, chance.choice(forms), names, changed)

    return make


def permuted(model: Scored, rows: Rows, chance: random.Random) -> tuple[str, Any, Rows]:
    order = list(range(len(model.names)))
    chance.shuffle(order)
    return "permuted", [model.names[k] for k in order], [[row[k] for k in order] for row in rows]


def with_value(kind: str, value: Any, types: tuple[type, ...]) -> Maker:
    """One value of those types is replaced; where there is none the payload stays good."""

    def change(model: Scored, rows: Rows, chance: random.Random) -> tuple[str, Any, Rows]:
        fitting = [k for k, item in enumerate(model.rows[0]) if type(item) in types]
        if not fitting:
            return "good", names_of(model), rows
        place = chance.choice(fitting)
        chance.choice(rows)[place] = value
        optional = names_of(model)[place] == "year"
        return f"{kind}-optional" if optional and value is None else kind, names_of(model), rows

    return any_form(change)


def extra_column(model: Scored, rows: Rows, chance: random.Random) -> tuple[str, Any, Rows]:
    return "extra-column", [*names_of(model), "colour"], [[*row, 1.5] for row in rows]


def missing_column(model: Scored, rows: Rows, chance: random.Random) -> tuple[str, Any, Rows]:
    place = chance.randrange(len(model.names))
    optional = model.names[place] == "year"
    names = [name for k, name in enumerate(model.names) if k != place]
    if not names:
        return "good", model.names, rows
    kind = "missing-optional" if optional else "missing-column"
    return kind, names, [[item for k, item in enumerate(row) if k != place] for row in rows]


def no_rows(model: Scored, rows: Rows, chance: random.Random) -> tuple[str, Any, Rows]:
    return "no-rows", names_of(model), []


def ragged(model: Scored, rows: Rows, _: random.Random) -> Payload:
    content = split(names_of(model), [*rows, rows[0][:-1]])
    return Payload("ragged", "split", json.dumps(content).encode())


def ragged_long(model: Scored, rows: Rows, _: random.Random) -> Payload:
    content = split(names_of(model), [*rows, [*rows[0], 1.0]])
    return Payload("ragged-long", "split", json.dumps(content).encode())


def uneven(model: Scored, rows: Rows, _: random.Random) -> Payload:
    content = inputs(names_of(model), rows)
    content["inputs"][names_of(model)[0]].append(rows[0][0])
    return Payload("uneven", "inputs", json.dumps(content).encode())


def one_row(model: Scored, rows: Rows, _: random.Random) -> Payload:
    content = {"inputs": dict(zip(names_of(model), rows[0], strict=True))}
    return Payload("one-row", "inputs", json.dumps(content).encode())


def indexed(model: Scored, rows: Rows, _: random.Random) -> Payload:
    content = split(names_of(model), rows)
    content["dataframe_split"]["index"] = [f"r{number}" for number in range(len(rows))]
    return Payload("indexed", "split", json.dumps(content).encode())


def wrongly_indexed(model: Scored, rows: Rows, _: random.Random) -> Payload:
    content = split(names_of(model), rows)
    content["dataframe_split"]["index"] = list(range(len(rows) + 1))
    return Payload("index-long", "split", json.dumps(content).encode())


def without_columns(model: Scored, rows: Rows, _: random.Random) -> Payload:
    return Payload("no-columns", "split", json.dumps({"dataframe_split": {"data": rows}}).encode())


def whole(kind: str, content: Any, content_type: str = JSON) -> Maker:
    """A body that has nothing to do with the model."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda *_: Payload(kind, "whole", body, content_type)


def both_formats(model: Scored, rows: Rows, _: random.Random) -> Payload:
    content = {**split(names_of(model), rows), "inputs": rows}
    return Payload("two-formats", "split", json.dumps(content).encode())


def more_fields(model: Scored, rows: Rows, _: random.Random) -> Payload:
    return written("more-fields", "split", names_of(model), rows, client_request_id="abc")


def typed(content_type: str, kind: str) -> Maker:
    return lambda model, rows, _: written(kind, "split", names_of(model), rows)._replace(content_type=content_type)


PARAMS: dict[str, list[Any]] = {
    "params": [
        {},
        {"factor": 3.5},
        {"factor": 3},
        {"rooms": 2},
        {"up": False, "word": "yes"},
        {"more": [1, 2.5]},
        None,
    ],
    "params-unknown": [{"colour": "red"}, {"factor": 1.5, "colour": 1}],
    "params-wrong": [
        {"factor": "3"},
        {"rooms": 1.5},
        {"up": 1},
        {"word": 3},
        {"more": 1.0},
        {"more": ["a"]},
        {"rooms": True},
    ],
    "params-no-object": [[1], "a", 3],
}


def with_params(kind: str) -> Maker:
    def make(model: Scored, rows: Rows, chance: random.Random) -> Payload:
        return written(kind, "split", names_of(model), rows, params=chance.choice(PARAMS[kind]))

    return make


def lines(kind: str, change: Callable[[bytes], bytes], content_type: str = CSV) -> Maker:
    return lambda model, rows, _: Payload(kind, "csv", change(table(names_of(model), rows)), content_type)


def pandas_index(model: Scored, rows: Rows, _: random.Random) -> Payload:
    body = table(["", *names_of(model)], [[number, *row] for number, row in enumerate(rows)])
    return Payload("csv-index", "csv", body, CSV)


BOTH: tuple[Maker, ...] = (
    *(good(form) for form in ("split", "records", "csv")),
    nested("inputs"),
    nested("instances"),
    ragged,
    ragged_long,
    indexed,
    wrongly_indexed,
    without_columns,
    both_formats,
    more_fields,
    any_form(no_rows),
    with_value("null", None, (float,)),
    with_value("text-for-number", "5.5", (int, float)),
    with_value("word-for-number", "wide", (int, float)),
    with_value("true-for-number", True, (int, float)),
    with_value("list-for-number", [1.0], (int, float)),
    with_value("whole-for-number", 5, (float,)),
    with_value("huge", 1e300, (float,)),
    with_value("nan", math.nan, (float,)),
    with_value("infinity", math.inf, (float,)),
    whole("empty", b""),
    whole("not-json", b'{"inputs": [1, 2'),
    whole("not-utf8", b"\xff\xfe\x00"),
    whole("a-list", [[1, 2, 3]]),
    whole("a-number", 3),
    whole("no-format", {"rows": [[1, 2]]}),
    whole("empty-object", {}),
    whole("split-a-list", {"dataframe_split": [[1]]}),
    whole("split-without-data", {"dataframe_split": {"columns": ["a"]}}),
    whole("split-more", {"dataframe_split": {"columns": ["a"], "data": [[1]], "colour": 1}}),
    whole("records-an-object", {"dataframe_records": {"a": [1]}}),
    whole("nothing", {"inputs": None}),
    whole("deep", b'{"inputs": ' + b"[" * 300 + b"]" * 300 + b"}"),
    typed("application/json; charset=utf-8", "charset"),
    typed("application/json; charset=latin-1", "charset-other"),
    typed("application/json; format=pandas-split", "media-parameter"),
    typed("application/x-www-form-urlencoded", "media-other"),
    typed("text/plain", "media-other"),
    typed("", "media-missing"),
    *map(with_params, PARAMS),
)
NAMED: tuple[Maker, ...] = (
    good("instances"),
    good("inputs"),
    any_form(permuted),
    any_form(extra_column),
    any_form(missing_column),
    uneven,
    one_row,
    with_value("fraction-for-whole", 2.7, (int,)),
    with_value("whole-float-for-whole", 2.0, (int,)),
    with_value("beyond-integer", 2**31 + 5, (int,)),
    with_value("beyond-long", 2**70, (int,)),
    with_value("null-whole", None, (int,)),
    with_value("number-for-text", 7, (str,)),
    with_value("null-text", None, (str,)),
    with_value("word-na", "NA", (str,)),
    with_value("quoted-text", 'Bad "Ems", \nLahn', (str,)),
    with_value("number-for-boolean", 1, (bool,)),
    with_value("text-for-boolean", "false", (bool,)),
    with_value("null-boolean", None, (bool,)),
    lines("csv-bom", lambda body: b"\xef\xbb\xbf" + body),
    lines("csv-charset", lambda body: body, "text/csv; charset=utf-8"),
    lines("csv-crlf", lambda body: body.replace(b"\n", b"\r\n")),
    lines("csv-blank-lines", lambda body: body.replace(b"\n", b"\n\n")),
    lines("csv-header-only", lambda body: body.partition(b"\n")[0]),
    whole("csv-empty", b"", CSV),
    lines("csv-short-row", lambda body: body.rstrip(b"\n").rpartition(b",")[0] + b"\n"),
    lines("csv-long-row", lambda body: body.rstrip(b"\n") + b",1\n"),
    lines("csv-not-utf8", lambda body: body + b"\xff"),
    pandas_index,
)
