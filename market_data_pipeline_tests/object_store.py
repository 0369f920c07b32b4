"""A real object store for tests: moto's server, which speaks S3 over HTTP, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

KEY_ID, SECRET = "AKIDEXAMPLE", "a-secret-of-the-object-store"


@dataclass
class Bucket:
    """One bucket: its address, and a client that fills it."""

    url: str
    client: Any
    name: str

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)


@contextmanager
def object_store(bucket: str = "flatfiles") -> Iterator[Bucket]:
    """Serve an empty bucket on a free port while the block runs."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket=bucket)
        yield Bucket(f"http://{host}:{port}", client, bucket)
        for row in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            client.delete_object(Bucket=bucket, Key=row["Key"])
        client.delete_bucket(Bucket=bucket)
    finally:
        server.stop()
