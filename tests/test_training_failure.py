from __future__ import annotations

import shutil

import pytest
import requests
import sqlalchemy
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, NoCredentialsError
from mlflow import MlflowException

from training.failure import LONGEST, SURROUNDINGS, brief


def database_error() -> sqlalchemy.exc.OperationalError:
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("disk is full\nand more"))


def wrapped() -> MlflowException:
    err = MlflowException("(raised as a result of Query-invoked autoflush)")
    err.__cause__ = database_error()
    return err


def given_up(cause: str) -> MlflowException:
    """What MLflow's client raises after its last attempt."""
    path = "/api/2.0/mlflow-artifacts/artifacts"
    return MlflowException(
        f"API request to http://localhost:5000{path} failed with exception HTTPConnectionPool(host='localhost', "
        f"port=5000): Max retries exceeded with url: {path}?path=1 (Caused by {cause})"
    )


def answered(content: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code, response._content = 404, content.encode()
    return requests.HTTPError(
        f"404 Client Error for url: http://localhost:5000/. Response: {content}", response=response
    )


REFUSED = "NewConnectionError(\"HTTPConnection(host='localhost', port=5000): Failed: [Errno 111] Connection refused\")"
SLOW = "ReadTimeoutError(\"HTTPConnectionPool(host='localhost', port=5000): Read timed out. (read timeout=30)\")"


@pytest.mark.parametrize(
    ("err", "said"),
    [
        (
            given_up("ResponseError('too many 500 error responses')"),
            "http://localhost:5000 answers 500; its log says why",
        ),
        (given_up(REFUSED), "http://localhost:5000 does not answer: Connection refused"),
        (given_up(SLOW), "http://localhost:5000 does not answer: Read timed out"),
        (answered('{"message": "The bucket does not exist"}'), "The bucket does not exist"),
        (answered("gone"), "404 Client Error for url: http://localhost:5000/. Response: gone"),
        (requests.HTTPError("gone"), "gone"),
        (OSError(28, "No space left on device", "/models"), "No space left on device: /models"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("something of the network"), "something of the network"),
        (
            shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
            "[Errno 28] No space left on device: 'b'",
        ),
        (database_error(), "disk is full"),
        (wrapped(), "disk is full"),
        (ValueError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (ValueError("no way to postgresql://me:secret@db/runs"), "no way to postgresql://…@db/runs"),
    ],
)
def test_brief_is_one_line_with_the_cause(err: Exception, said: str) -> None:
    assert brief(err) == said


def test_brief_is_short() -> None:
    assert len(brief(ValueError("x" * 10_000))) == LONGEST


@pytest.mark.parametrize(
    "err",
    [S3UploadFailedError("no"), ClientError({"Error": {"Code": "NoSuchBucket"}}, "PutObject"), NoCredentialsError()],
)
def test_a_bucket_that_is_not_ours_is_no_bug(err: Exception) -> None:
    assert isinstance(err, SURROUNDINGS)
