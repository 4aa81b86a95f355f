"""Load for locust: mixed prompts, hot and cold keys, streams, signing in.

    ADMIN_PASSWORD=… locust -f tests/load_test.py --host=http://127.0.0.1:8000

locust is not part of the dev extra; `pip install locust` into an environment of its own.
"""
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

import os
import random
import uuid

from gevent.lock import Semaphore
from locust import HttpUser, between, task

HOT = [f"What is the capital of country number {number}?" for number in range(20)]
PROMPT = "/api/v1/agent/prompt"
FIRST = Semaphore()
"""Held by who signs in first, while the others wait for the token."""


class Caller(HttpUser):
    """Someone who signs in once and then asks: mostly what others asked too, sometimes something new."""

    wait_time = between(0.05, 0.2)

    token = ""
    """That of whoever signed in last: the server limits sign-ins, so not every caller gets one of its own."""

    def on_start(self) -> None:
        """Sign in, or go with the token of another caller."""
        with FIRST:
            if not Caller.token:
                self.sign_in()
        self.client.headers["Authorization"] = f"Bearer {Caller.token}"

    @task(1)
    def sign_in(self) -> None:
        form = {"username": os.environ.get("ADMIN_USERNAME", "admin"), "password": os.environ["ADMIN_PASSWORD"]}
        with self.client.post("/api/v1/auth/token", data=form, catch_response=True) as reply:
            if reply.status_code == 200:
                Caller.token = reply.json()["access_token"]
                self.client.headers["Authorization"] = f"Bearer {Caller.token}"
            elif reply.status_code == 429 and Caller.token:
                reply.success()  # at the limit for sign-ins, as it should be

    @task(60)
    def ask_hot(self) -> None:
        self.client.post(PROMPT, json={"message": random.choice(HOT)}, name="hot prompt")

    @task(20)
    def ask_cold(self) -> None:
        self.client.post(PROMPT, json={"message": f"Tell me about {uuid.uuid4()}"}, name="cold prompt")

    @task(10)
    def stream(self) -> None:
        body = {"message": f"Tell me slowly about {uuid.uuid4()}", "stream": True}
        with self.client.post(PROMPT, json=body, stream=True, name="stream", catch_response=True) as reply:
            if reply.status_code != 200 or b"event: done" not in reply.content:
                reply.failure(f"status {reply.status_code}, no end")
