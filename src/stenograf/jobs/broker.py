"""The message broker, by Celery: its queues, and the settings under which a hint is what it should be.

A hint goes to `<queue_name>.<lane>.<need>`, such as `stenograf.short.cpu`, and says "there may be work here". Who sends
them is `hints.py`, who hears them `celery_app.py`. `docs/jobs.md` tells why nothing is lost where a hint is.
"""

from __future__ import annotations

import re
import ssl
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection, Exchange, Queue

from stenograf.errors import SettingInvalidError
from stenograf.jobs.job import LANES, NEEDS, Lane, Need
from stenograf.settings import Settings

TASK = "stenograf.run_one"
"""The name of the one kind of task there is; its arguments are `lane` and `need`."""

CONNECT_SECONDS = 2.0
"""How long the broker may take to take a connection."""

ANSWER_SECONDS = 5.0
"""How long it may take to answer."""

RECONNECT_SECONDS = 3.0
"""The longest pause between two tries to reach a broker that is away: work must start within 10 s of its return."""

VISIBILITY_SECONDS = 3600
"""Redis: a hint that was taken and not acknowledged for so long is given to another worker, who finds nothing to do."""

REFUSALS = ("AuthenticationError", "AuthorizationError", "NoPermissionError", "AccessRefused", "NotAllowed")
"""Errors of redis and amqp: the broker is there, and wants another user or password."""

SCHEMES = ("redis", "rediss", "amqp", "amqps")


class PatientConnection(Connection):
    """A connection that is tried again soon, for ever; Celery's own pauses grow to 30 s and cannot be set."""

    def _ensure_connection(self, *args: Any, **options: Any) -> Any:
        options = {"interval_start": 1.0, "interval_step": 1.0, "interval_max": RECONNECT_SECONDS, **options}
        return super()._ensure_connection(*args, **options)

    @cached_property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        """What is tried again: all of it. RabbitMQ refuses a user whom it has yet to learn of, and passwords change."""
        return (*self.connection_errors, *self.channel_errors)


class PatientAMQP(AMQP):
    """Celery's way to the broker, by such connections."""

    Connection = PatientConnection


def queue_name(settings: Settings, lane: Lane, need: Need) -> str:
    """The queue for the hints of a lane and a need."""
    return f"{settings.queue_name}.{lane}.{need}"


def broker_app(settings: Settings) -> Celery:
    """The Celery application that knows the broker of the settings and all queues; nothing is connected yet.

    Raises `SettingInvalidError` for an address that is none of a broker.
    """
    url = check_url(settings)
    app = Celery("stenograf", broker=url, amqp=PatientAMQP, set_as_current=False)
    is_amqp = url.startswith("amqp")
    exchange = Exchange(settings.queue_name, type="topic", durable=True)
    app.conf.update(
        task_queues=[
            Queue(
                name := queue_name(settings, lane, need),
                exchange,
                routing_key=name,
                durable=True,
                queue_arguments={"x-queue-type": "quorum"} if is_amqp else None,
            )
            for lane in LANES
            for need in NEEDS
        ],
        task_default_exchange=settings.queue_name,
        task_default_queue=queue_name(settings, "short", "cpu"),
        task_default_routing_key=queue_name(settings, "short", "cpu"),
        task_default_queue_type="quorum" if is_amqp else "classic",
        # A task is acknowledged when it has ended: with one hint in the hand and none in reserve, a short recording
        # never waits behind a long one while another worker has nothing to do. Quorum queues count for each queue by
        # itself: there a worker may keep a hint for each lane, and what waits in its hands is told of again after 5 s.
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        task_reject_on_worker_lost=False,  # the row knows better: its lease runs out
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_publish_retry=False,  # the reconciler is the retry
        task_serializer="json",
        accept_content=["json"],
        broker_connection_timeout=CONNECT_SECONDS,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # else a hint that is held for too long ends the worker
        broker_transport_options={}
        if is_amqp
        else {
            "visibility_timeout": VISIBILITY_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
        },
    )
    if url.startswith("rediss:") and "ssl_" not in urlsplit(url).query:
        app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}  # kombu's own way is to trust anyone
    return app


def check_url(settings: Settings) -> str:
    """The URL of the broker; raises `SettingInvalidError` where it is none."""
    url = settings.broker
    if url is None:
        raise SettingInvalidError(
            "No message broker is set.", "Set STENOGRAF_BROKER_URL, or run stenograf worker, which needs none."
        )
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        # A / or a ? in a password ends the host for a reader of URLs: what stands before it would be shown as one.
        is_good = is_good and not parts.fragment and "@" not in parts.path + parts.query
        if parts.scheme.startswith("redis"):
            is_good = is_good and re.fullmatch(r"(/\d*)?", parts.path) is not None
    except ValueError:
        is_good = False
    if not is_good:
        raise SettingInvalidError(
            "The setting STENOGRAF_BROKER_URL is no address of a broker."
            if url
            else "There is no message broker: the setting STENOGRAF_BROKER_URL is empty.",
            "Write redis://:password@host:6379/0 (0: the number of its database) or amqp://user:password@host:5672//. "
            "In a password write %40 for @, %2F for /, %3A for :, %23 for # and %3F for ?.",
        )
    return url


def look(settings: Settings) -> str:
    """Connect once; the broker's address for people. Raises `SettingInvalidError` where it does not answer."""
    app = broker_app(settings)
    where = shown(settings.broker or "")
    with app.connection_for_write(connect_timeout=CONNECT_SECONDS) as connection:
        try:
            connection.connect()
        except Exception as error:
            told, hint = why(error)
            raise SettingInvalidError(
                f"The broker {where} {told}: {' '.join(str(error).split()).rstrip('.')}.", hint
            ) from error
    return where


def why(error: Exception) -> tuple[str, str]:
    """What a broker does that an error came of, in words that follow its address; and what to do."""
    if type(error).__name__ in REFUSALS:
        return "refuses us", "Check the user and the password in STENOGRAF_BROKER_URL, and what that user may do."
    if is_another_kind(error):
        return "has a queue or an exchange of another kind", "Remove it, or choose another STENOGRAF_QUEUE_NAME."
    return (
        "cannot be reached",
        "See that it runs and takes connections from here, and that STENOGRAF_BROKER_URL is right.",
    )


def is_another_kind(error: Exception) -> bool:
    """Whether RabbitMQ has something of one of our names that is not as ours: it will not change by itself."""
    return type(error).__name__ == "PreconditionFailed" and "inequivalent arg" in str(error)


def shown(url: str) -> str:
    """The address of a broker for people, without credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
