"""Failures that are the surroundings' and not ours, and how to say any failure in one line."""

from __future__ import annotations

import re
import shutil

from alembic.util.exc import CommandError
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowException
from requests import HTTPError
from sqlalchemy.exc import SQLAlchemyError

from serving.errors import ServingError
from training.options import Unusable


class NotPromoted(Exception):
    """The version is registered and passed the gate, but putting it live failed on the way."""


# A store that is away, full or not ours to write, a disk likewise. Anything else is a bug and shows its traceback.
SURROUNDINGS = (
    *(ServingError, MlflowException, SQLAlchemyError, CommandError, OSError, NotPromoted, Unusable),
    *(Boto3Error, BotoCoreError, ClientError),  # without a tracking server in between we talk to S3 ourselves
)

LONGEST = 300

# What MLflow's client says when it gives up: the whole address that it asked, and the cause at the very end.
GAVE_UP = re.compile(r"API request to (?P<server>\w+://[^/]+).* failed with exception .*\(Caused by (?P<cause>.*)\)")


def brief(err: BaseException) -> str:
    """What went wrong in one line."""
    if isinstance(err, HTTPError):
        text = _answer(err)
    elif isinstance(err, OSError):
        text = _system(err)
    else:
        text = _without_address(str(_driver(err) or err))
    lines = text.strip().splitlines() or [type(err).__name__]
    return without_password(lines[0])[:LONGEST]


def without_password(text: str) -> str:
    """``text`` without what an address in it has before its @."""
    return re.sub(r"://[^/@\s]*@", "://…@", text)


def _driver(err: BaseException) -> BaseException | None:
    """What the database's driver said, under SQLAlchemy's and MLflow's words about it."""
    inner = err.__cause__ if isinstance(err, MlflowException) else err
    return getattr(inner, "orig", None)


def _answer(err: HTTPError) -> str:
    """What a tracking server wrote into its answer, which is more than its status."""
    try:
        return str(err.response.json()["message"])
    except (AttributeError, ValueError, KeyError, TypeError):  # it has no answer, or not one of MLflow's
        return str(err)


def _without_address(text: str) -> str:
    """Who did not answer and why, without the 300 letters of the request that it was."""
    given_up = GAVE_UP.search(text)
    if given_up is None:
        return text
    server, cause = given_up["server"], given_up["cause"]
    if refused := re.search(r"too many (\d+) error responses", cause):
        return f"{server} answers {refused[1]}; its log says why"
    reason = re.sub(r".*(?:\[Errno -?\d+\] |: )|(?:\. \(.*)?['\")]+$", "", cause)
    return f"{server} does not answer: {reason}"


def _system(err: OSError) -> str:
    if isinstance(err, shutil.Error) and isinstance(err.args[0], list):
        return str(err.args[0][0][-1])  # one entry for each file that could not be copied: source, target, why
    if err.strerror is None:
        return str(err)
    return f"{err.strerror}: {err.filename}" if err.filename else err.strerror
