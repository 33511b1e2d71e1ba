"""S3 with an empty bucket, for this process and those that get its variables."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from local_storage import BUCKET as BUCKET
from local_storage import S3
from s3fs import S3FileSystem


@contextmanager
def s3_server() -> Iterator[S3]:
    """Serve S3 with an empty bucket, for this process and those that get its variables."""
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        server.start()
        S3FileSystem.clear_instance_cache()  # which keeps the address of another file's server
        try:
            server.client().create_bucket(Bucket=BUCKET)
            yield server
        finally:
            server.stop()
