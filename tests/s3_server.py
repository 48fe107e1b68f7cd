"""A real S3 server on loopback: HTTP, signatures checked, objects in memory (moto's, by werkzeug)."""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib import request

import boto3
from moto import settings
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"
REGION = "us-east-1"


class Server:
    """`before(method, path)` is called for each request, in its thread; an HTTP status from it is the answer."""

    def __init__(self) -> None:
        self.before: Callable[[str, str], str | None] = lambda method, path: None
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.application = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        request.urlopen(f"{self.url}/moto-api/reset", data=b"").close()  # what a server before this one has kept
        self.key, self.secret = self.make_user()
        self.s3 = self.client("s3")

    def answer(self, environ: dict, start_response: Callable) -> Any:
        if status := self.before(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(status, [("Content-Length", "0")])
            return [b""]
        return self.application(environ, start_response)

    def client(self, service: str) -> Any:
        return boto3.client(
            service, endpoint_url=self.url, region_name=REGION, aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )  # fmt: skip

    def make_user(self) -> tuple[str, str]:
        """A bucket and the one user who may use it; from here on every request must be signed by such a key."""
        self.key, self.secret = "first", "first"
        self.client("s3").create_bucket(Bucket=BUCKET)
        iam = self.client("iam")
        iam.create_user(UserName="trainer")
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="trainer", PolicyName="all", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="trainer")["AccessKey"]
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0.0
        return key["AccessKeyId"], key["SecretAccessKey"]

    def environment(self, **changes: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        } | changes

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def close(self) -> None:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
        self.server.shutdown()
        self.server.server_close()
