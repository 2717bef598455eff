"""The bucket as one tar file, for backups: ``archive.py save BUCKET > FILE`` and ``archive.py load BUCKET < FILE``."""

import sys
import tarfile
from types import SimpleNamespace
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def save(s3: Any, bucket: str) -> int:
    """Write every object to standard output; how many."""
    count = 0
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                answer = s3.get_object(Bucket=bucket, Key=entry["Key"])
                member = tarfile.TarInfo(entry["Key"])
                member.size = answer["ContentLength"]
                archive.addfile(member, answer["Body"])
                count += 1
    return count


def load(s3: Any, bucket: str) -> int:
    """Put every object of standard input into the bucket, over those of the same key; how many."""
    count = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            # Nothing but `read`: boto3 would ask whether it can seek, and tarfile has no answer for a pipe.
            s3.upload_fileobj(SimpleNamespace(read=archive.extractfile(member).read), bucket, member.name)
            count += 1
    return count


if __name__ == "__main__":
    _, action, bucket = sys.argv
    try:
        count = {"save": save, "load": load}[action](boto3.client("s3"), bucket)
    except (BotoCoreError, ClientError, tarfile.TarError) as err:
        sys.exit(f"bucket {bucket}: {err}")
    print(f"bucket {bucket}: {count} objects", file=sys.stderr)
