"""Errors of the client. Each message says what happened, where, and the next command."""

from __future__ import annotations

from geventhttpclient.response import HTTPParseError
from tritonclient.utils import InferenceServerException

from reverse_image_search.layout import BUILD_COMMAND, START_COMMAND


class TritonError(Exception):
    """The server did not answer; base class of the errors below."""


class ServerUnreachableError(TritonError):
    """Nothing answers at the server's address, or not over HTTP."""


class ServerTimeoutError(TritonError):
    """The server was silent for longer than the client's timeout."""


class ServerNotReadyError(TritonError):
    """The server is up, but a model is missing or still loading."""


class RequestRejectedError(TritonError):
    """The server answered with an error, or with something that is not an answer."""


def triton_error(error: Exception, url: str, timeout: float) -> TritonError:
    """Translate what `tritonclient` raised."""
    message = error.message() if isinstance(error, InferenceServerException) else str(error)
    # The C++ libtorch backend puts a kilobyte of TorchScript traceback before the reason.
    reason = (message.strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
    if isinstance(error, InferenceServerException):
        if error.status() == "503" or "unknown model" in reason or "is not ready" in reason:
            return ServerNotReadyError(
                f"Triton at {url} does not serve the models: {reason}. Build them with "
                f"{BUILD_COMMAND} and restart it with {START_COMMAND}"
            )
        return RequestRejectedError(f"Triton at {url} rejected the request: {reason}")
    if isinstance(error, TimeoutError):
        return ServerTimeoutError(
            f"Triton at {url} did not answer within {timeout:g} s. If this persists, restart it "
            f"with {START_COMMAND}"
        )
    if isinstance(error, (OSError, HTTPParseError)):
        return ServerUnreachableError(
            f"Triton is not reachable at {url} ({reason}). Start it with {START_COMMAND}"
        )
    return RequestRejectedError(f"{url} sent an unreadable answer: {reason}")
