"""Creates the bucket for artifacts unless it is there: ``python docker/bucket.py NAME``; boto3 finds server and key."""

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


def main(name: str) -> str:
    """What was done, in a few words. Raises what boto3 raises."""
    s3 = boto3.client("s3", config=Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2}))
    if any(bucket["Name"] == name for bucket in s3.list_buckets()["Buckets"]):
        return "is there"
    s3.create_bucket(Bucket=name)
    return "created"


if __name__ == "__main__":
    try:
        print(f"bucket {sys.argv[1]}:", main(sys.argv[1]))
    except (BotoCoreError, ClientError) as err:
        sys.exit(f"bucket {sys.argv[1]}: {err}")
