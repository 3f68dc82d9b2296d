"""What is open, what is shut, and what is never unpacked."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import tomllib

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.faults.conftest import processes_of
from tests.running import REPO_ROOT, Triton, run_script

SOURCES = sorted((REPO_ROOT / "reverse_image_search").rglob("*.py"))


def post(server: Triton, path: str, body: object = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    connection.request("POST", path, json.dumps(body or {}))
    response = connection.getresponse()
    return response.status, response.read().decode()


def listening(server: Triton) -> set[str]:
    """Local addresses, as ``127.0.0.1:8000``, on which processes of the server listen."""
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout.splitlines()
    pids = {f"pid={pid}," for pid in (server.pid, *processes_of(server))}
    addresses = {line.split()[3] for line in lines if any(pid in line for pid in pids)}
    return {address.replace("[::ffff:127.0.0.1]", "127.0.0.1") for address in addresses}  # gRPC's


def test_the_local_server_listens_on_loopback_whatever_is_asked(start_triton, small_build):
    server = start_triton(small_build)
    ports = (server.http_port, server.grpc_port, server.metrics_port)
    everything = {f"127.0.0.1:{port}" for port in ports}
    assert listening(server) == everything
    server.stop()

    asked = server.environment | {"BIND_ADDRESS": "0.0.0.0"}
    result = run_script("start_inference_server_cpu.sh", "--detach", **asked)

    assert result.returncode == 0, result.stderr
    assert "listens on 127.0.0.1 only" in result.stderr
    assert "known critical vulnerabilities" in result.stderr
    assert listening(server) == everything
    server.stop()

    result = run_script(
        "start_inference_server_cpu.sh", "--detach", "--host", "0.0.0.0", **server.environment
    )

    assert result.returncode == 1
    assert "listens on 127.0.0.1 only, not on 0.0.0.0" in result.stderr
    assert "known critical vulnerabilities" in result.stderr
    assert listening(server) == set()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", {}),
        ("/v2/repository/models/image_encoder/load", {}),
        ("/v2/repository/models/image_encoder/unload", {}),
        ("/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 4}),
        ("/v2/cudasharedmemory/region/x/register", {"raw_handle": {"b64": ""}, "byte_size": 4}),
        ("/v2/logging", {"log_verbose_level": 1}),
        ("/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ],
)
def test_closed_doors_over_http(victim: Triton, path, body):
    status, answer = post(victim, path, body)

    assert status == 403
    assert "restricted" in answer


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("RepositoryIndex", service_pb2.RepositoryIndexRequest),
        ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest),
        ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest),
        ("SystemSharedMemoryRegister", service_pb2.SystemSharedMemoryRegisterRequest),
        ("CudaSharedMemoryRegister", service_pb2.CudaSharedMemoryRegisterRequest),
        ("LogSettings", service_pb2.LogSettingsRequest),
        ("TraceSetting", service_pb2.TraceSettingRequest),
    ],
)
def test_closed_doors_over_grpc(victim: Triton, method, request_type):
    with grpc.insecure_channel(f"127.0.0.1:{victim.grpc_port}") as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(request_type().SerializeToString(), timeout=10)

    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "restricted" in caught.value.details()


def test_models_change_only_through_the_model_repository(victim: Triton):
    """While it polls, Triton refuses to load and unload models even for those who have the key."""
    assert "| model_control_mode               | MODE_POLL" in victim.log


FORBIDDEN = {
    "unpickling": r"\b(pickle|dill|shelve)\b|allow_pickle\s*=\s*True|weights_only\s*=\s*False",
    "torch.load without weights_only": r"torch\.load\("
    r"(?![^()]*(?:\([^()]*\)[^()]*)*weights_only=True)",
    "run-time code": r"(?<![\w.])(eval|exec)\(|\bos\.system\(|shell\s*=\s*True",
    "yaml that runs code": r"yaml\.(load|unsafe_load)\(",
    "temporary names that can be guessed": r"\btempfile\.mktemp\(",
    "TLS without checks": r"verify\s*=\s*False|CERT_NONE|_create_unverified_context",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_sources_do_without(what):
    found = [
        f"{path.relative_to(REPO_ROOT)}: {match[0]}"
        for path in SOURCES
        for match in re.finditer(FORBIDDEN[what], path.read_text())
    ]
    assert not found


def test_these_patterns_find_what_they_forbid():
    """A pattern that matches nothing would pass as well."""
    examples = {
        "unpickling": "np.load(path, allow_pickle=True)",
        "torch.load without weights_only": "torch.load(path(x), map_location='cpu')",
        "run-time code": "x = eval(text)",
        "yaml that runs code": "yaml.load(text)",
        "temporary names that can be guessed": "tempfile.mktemp()",
        "TLS without checks": "get(url, verify=False)",
    }
    for what, code in examples.items():
        assert re.search(FORBIDDEN[what], code), what
    safe = "torch.load(path(x), weights_only=True)"
    assert not re.search(FORBIDDEN["torch.load without weights_only"], safe)


def test_streamlit_is_shut():
    settings = tomllib.loads((REPO_ROOT / ".streamlit" / "config.toml").read_text())

    assert settings["browser"]["gatherUsageStats"] is False
    assert settings["server"]["enableXsrfProtection"] is True
    assert settings["server"]["enableCORS"] is True
    assert settings["server"]["maxUploadSize"] <= 20
    assert settings["client"]["showErrorDetails"] == "none"


def test_uploads_are_not_written_to_disk():
    """The page and what it calls read bytes; none of it opens a file to write."""
    for path in (path for path in SOURCES if path.parent.name in ("app", "client")):
        text = path.read_text()
        assert not re.search(
            r"write_bytes|write_text|open\([^)]*[\"'][wax]b?[\"']|\.save\(\s*[\"']", text
        )


def test_packages_of_the_app_image_are_pinned_with_hashes():
    text = (REPO_ROOT / "requirements-app.txt").read_text().replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]

    assert packages
    for line in packages:
        assert "==" in line, line[:80]
        assert "--hash=sha256:" in line, line[:80]


def test_default_address_is_loopback():
    settings = dict(
        line.split("=", 1)
        for line in (REPO_ROOT / ".env").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert settings["BIND_ADDRESS"] == "127.0.0.1"
