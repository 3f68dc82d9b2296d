"""Wait until a running server has taken over what was published.

Servers of both runtimes look at the model repository once a second (doc/live_updates.md). There is
nothing to tell them, and nobody could: model control is closed.

Only the standard library.
"""

import contextlib
import http.client
import json
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from reverse_image_search import layout
from reverse_image_search.contract import GALLERY_ID_PARAMETER, MODELS, VECTOR_SIMILARITY
from reverse_image_search.serving.local_server import served_repository
from reverse_image_search.serving.supervisor import ADDRESS

_PAUSE = 0.02  # seconds between two questions
_TIMEOUT = 120  # seconds in which the largest index is read from a slow disk and warmed up


class NotServedError(Exception):
    """A running server did not take over what was published."""


def wait_until_served(output_dir: Path, url: str, timeout: float = _TIMEOUT) -> float | None:
    """Wait until the server at `url` answers with what was published: seconds that took.

    None where no server runs there, or one of another folder or gallery. A request that begins
    after this returned is answered by the published versions.

    Raises NotServedError after `timeout` seconds; the server then still serves the old versions.
    """
    start = time.monotonic()
    is_ours = _is_ours(output_dir, url)
    if is_ours is False:
        return None
    while True:
        try:
            if all(_is_published(output_dir, _config(url, model.name)) for model in MODELS):
                return time.monotonic() - start
            if not is_ours and _is_foreign(output_dir, url):
                return None
        except (ConnectionRefusedError, socket.gaierror):
            # In Compose's network, a service that does not run has no name.
            if not _is_ours(output_dir, url):  # else it is starting
                return None
        except (OSError, http.client.HTTPException):
            pass  # busy, or a container that is starting
        if time.monotonic() - start > timeout:
            raise NotServedError(
                f"the server at {url} has not taken over the new version within {timeout:g} s; "
                "its log says why. Start it again to serve it."
            )
        time.sleep(_PAUSE)


def next_step(output_dir: Path) -> str:
    """What to say after publishing: that the running server took it over, or how to start one.

    Raises NotServedError like `wait_until_served`.
    """
    url = server_url()
    seconds = wait_until_served(output_dir, url)
    if seconds is None:
        return f"Next: {layout.START_COMMAND}"
    return f"The server at {url} took it over within {seconds:.1f} s."


def server_url() -> str:
    """Address of the server that the settings name."""
    port = os.environ.get("TRITON_HTTP_PORT") or 8000
    return os.environ.get("TRITON_URL") or f"http://127.0.0.1:{port}"


def _is_published(output_dir: Path, served: dict) -> bool:
    """Whether a configuration that a server answers with is the published one."""
    published = layout.config_file(output_dir / layout.MODEL_REPO, served.get("name", ""))
    if not published.exists():
        return False
    text = published.read_text()
    versions = served.get("version_policy", {}).get("specific", {}).get("versions", [0])
    return layout.version_policy(versions[0]) in text and all(
        f'"{parameter["string_value"]}"' in text for parameter in served["parameters"].values()
    )


def _is_ours(output_dir: Path, url: str) -> bool | None:
    """Whether the server at `url`, running or starting, serves `output_dir`.

    None where that is not known: no server of this project runs on this machine.
    """
    if in_container := os.environ.get("CONTAINER_SERVES"):  # from bin/lib/published_build.sh
        return in_container == "this"
    address = urlsplit(url)
    is_local = address.hostname in (ADDRESS, "localhost")
    served = served_repository(address.port or 80) if is_local else None
    return None if served is None else served == (output_dir / layout.MODEL_REPO).resolve()


def _is_foreign(output_dir: Path, url: str) -> bool:
    """Whether a server serves neither the published gallery nor the one that this replaced."""
    served = _config(url, VECTOR_SIMILARITY.name)
    if not served:
        return _get(url, "/v2/health/ready")[0] == http.client.OK  # else it may be starting
    gallery_id = served.get("parameters", {}).get(GALLERY_ID_PARAMETER, {}).get("string_value")
    folders = (output_dir, layout.previous_build(output_dir))
    configs = (layout.config_file(f / layout.MODEL_REPO, served["name"]) for f in folders)
    return not any(path.exists() and f'"{gallery_id}"' in path.read_text() for path in configs)


def _config(url: str, model_name: str) -> dict:
    """The configuration of the version of a model that answers now; empty where none does."""
    status, content = _get(url, f"/v2/models/{model_name}/config")
    return json.loads(content) if status == http.client.OK else {}


def _get(url: str, path: str) -> tuple[int, bytes]:
    """Status and content of the answer to a GET."""
    address = urlsplit(url)
    # Not urllib.request, which would ask the proxy that http_proxy names.
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    with contextlib.closing(kind(address.hostname or "", address.port, timeout=5)) as connection:
        connection.request("GET", address.path.rstrip("/") + path)
        response = connection.getresponse()
        return response.status, response.read()
