"""S3 as moto serves it, in a thread of this process, for tests and benchmarks.

It can go away and come back with all that it holds.
"""

import logging
import socket

import boto3
import botocore
from moto.server import ThreadedMotoServer

BUCKET = "reusekit"


class S3:
    """A server of S3 with one bucket, and what a process needs to know to use it."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "secret-of-one",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self._server: ThreadedMotoServer | None = None

    def start(self) -> None:
        """Begin to answer; what was held before is there."""
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Answer no more, and keep what is there."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def client(self) -> "botocore.client.BaseClient":
        """Return boto3's client, which knows nothing of reusekit."""
        return boto3.client("s3")

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return the objects below a prefix of the bucket, by their keys."""
        found, client = {}, self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for one in page.get("Contents", []):
                body = client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"]
                found[one["Key"]] = body.read()
        return found

    def put(self, key: str, content: bytes) -> None:
        """Write an object past reusekit."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=content)
