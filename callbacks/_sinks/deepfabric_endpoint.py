"""One POST to a DeepFabric server, and what came of it."""

import email.utils
import ipaddress
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from deepfabric_trainer.callbacks._sinks.records import json_line
from deepfabric_trainer.errors import ConfigError

_LONGEST_RETRY_AFTER = 3600.0


class Verdict(Enum):
    """What came of a POST."""

    SENT = "sent"
    """The server has it."""
    RETRY = "retry"
    """The server is not there or has no time: try again later."""
    REFUSED = "refused"
    """The server does not want this message: trying again will not help, others may pass."""
    CLOSED = "closed"
    """The server does not want us (key, address): nothing will pass until a person has changed something."""


@dataclass(frozen=True)
class Outcome:
    """What came of a POST.

    Args:
        verdict (`Verdict`): What to do next.
        reason (`str`): Why, for people; neither the key nor anything that the server said.
        retry_after (`float`, *optional*): How many seconds the server asked us to wait.
    """

    verdict: Verdict
    reason: str = ""
    retry_after: float | None = None


class Endpoint:
    """A DeepFabric server and the right to write to it.

    The key is in the `Authorization` header of requests to this host and nowhere else: not in `repr`, pickles (an
    endpoint has none), errors or logs. Redirects are not followed, so that no other host sees it.

    Args:
        url (`str`): The base URL, `https://`, or `http://` to this machine.
        key (`str`): The bearer key.
        pipeline_id (`str`, *optional*): Servers that file runs under pipelines want one.
        allow_http (`bool`): Allow plain HTTP to other machines.

    Raises:
        ConfigError: If the key would travel in the clear, or URL or key cannot be put into a request.
    """

    def __init__(self, url: str, key: str, *, pipeline_id: str | None = None, allow_http: bool = False) -> None:
        local = check_url(url, allow_http=allow_http)
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                "the DeepFabric API key holds characters that no header can",
                expected="letters, digits and signs of ASCII",
                fix="copy the key again",
            )
        self.base = url.rstrip("/")
        self._key = key
        self._pipeline_id = pipeline_id
        # A proxy would be handed the key of a request to this machine in the clear.
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirects(), *proxies)

    def __reduce__(self) -> Any:
        raise TypeError("an endpoint holds a key, and is not pickled")

    def url(self, path: str) -> str:
        """Return the address of `"runs"` or `"metrics"`."""
        if self._pipeline_id is None:
            return f"{self.base}/v1/training/{path}"
        return f"{self.base}/api/v1/training/{path}?{urllib.parse.urlencode({'pipeline_id': self._pipeline_id})}"

    def post(self, path: str, body: Mapping[str, Any], timeout: float) -> Outcome:
        """POST a body as JSON; whatever happens is an `Outcome`.

        Args:
            path (`str`): `"runs"` or `"metrics"`.
            body (`Mapping[str, Any]`): The message.
            timeout (`float`): Seconds that connecting, and each wait for the server, may take.
        """
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "User-Agent": "deepfabric-trainer",
        }
        request = urllib.request.Request(self.url(path), data=json_line(body), headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=timeout):
                return Outcome(Verdict.SENT)
        except urllib.error.HTTPError as error:
            with error:
                return _judge(error.code, error.headers.get("Retry-After"))
        except Exception as error:  # connections fail in many ways, and their messages may quote the request
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            return Outcome(Verdict.RETRY, f"no answer ({type(cause).__name__})")


def check_url(url: str, *, allow_http: bool) -> bool:
    """Return whether a base URL is on this machine.

    Raises:
        ConfigError: If it is no URL that a key may be sent to.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise ConfigError(
            "the DeepFabric URL cannot be read",
            expected='something like "https://api.deepfabric.ai"',
            fix="set `api_url` or DEEPFABRIC_API_URL",
        ) from None
    try:
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        port_fits = False
    try:
        local = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = False
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            "the DeepFabric URL holds more than a server and a path",
            expected='something like "https://api.deepfabric.ai"',
            fix="give the key as `api_key` or DEEPFABRIC_API_KEY",
        )
    if parts.hostname is None or not port_fits or parts.scheme not in ("https", "http"):
        raise ConfigError(
            f"the DeepFabric URL is {url!r}",
            expected='something like "https://api.deepfabric.ai"',
            fix="set `api_url` or DEEPFABRIC_API_URL",
        )
    if parts.scheme == "http" and not local and not allow_http:
        raise ConfigError(
            f"the DeepFabric URL is {url!r}, and whoever listens would read the key",
            expected="https, or http to this machine",
            fix="use https, or pass `allow_http=True`",
        )
    return local


def _judge(status: int, retry_after: str | None) -> Outcome:
    reason = f"HTTP status {status}"
    if status in (408, 425, 429) or status >= 500:
        return Outcome(Verdict.RETRY, reason, seconds_to_wait(retry_after))
    if status in (400, 409, 413, 422):
        return Outcome(Verdict.REFUSED, reason)
    return Outcome(Verdict.CLOSED, reason)


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header (RFC 9110, 10.2.3: seconds or a date), at most an hour."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER) if seconds == seconds else None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none: urllib would send the key along."""
