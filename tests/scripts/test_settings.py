"""How .env is read, and what is refused before anything starts."""

import os
import socket
import subprocess

import pytest

from tests.running import REPO_ROOT, run_script

SERVER = "start_inference_server_cpu.sh"
PORTS = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "APP_PORT")


def read_settings(repository, *names: str, **environment: str) -> subprocess.CompletedProcess:
    """The values that the scripts of `repository` see, one a line."""
    code = 'set -euo pipefail; source "$0"; read_settings; for name; do echo "${!name}"; done'
    library = repository / "reverse_image_search" / "bin" / "lib" / "settings.sh"
    return subprocess.run(
        ["bash", "-c", code, library, *names],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


def settings_of(repository, *names: str, **environment: str) -> list[str]:
    result = read_settings(repository, *names, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def clone(copy_repository, tmp_path):
    return copy_repository(tmp_path / "clone")


def append(repository, text: str) -> None:
    with (repository / ".env").open("a") as file:
        file.write(text)


def test_the_environment_wins_over_dot_env(clone):
    append(clone, "RUNTIME=docker\nOUTPUT_DIR=some where\n")  # the last one wins
    names = ("TRITON_HTTP_PORT", "OUTPUT_DIR", "RUNTIME")

    assert settings_of(clone, *names) == ["8000", f"{clone}/some where", "docker"]
    assert settings_of(
        clone, *names, RUNTIME="local", OUTPUT_DIR="/else", TRITON_HTTP_PORT="1"
    ) == [
        "1",
        "/else",
        "local",
    ]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("NEW=plain", "plain"),
        ("NEW=", ""),
        ("NEW=two words", "two words"),
        ("NEW=registry:5000/triton:1=2", "registry:5000/triton:1=2"),
        ('NEW="in quotes"', "in quotes"),
        ("NEW='in quotes'", "in quotes"),
        ('NEW="a # b"  # comment', "a # b"),
        ("NEW=value # comment # more", "value"),
        ("NEW= # comment", ""),
        ("NEW=no#comment", "no#comment"),
        ("export NEW=exported", "exported"),
        ("  NEW = spaces \t", "spaces"),
        ("NEW=windows\r", "windows"),
        ('NEW="windows"\r', "windows"),
        ("NEW=it's", "it's"),
        ("NEW=$(touch /tmp/no) `x`", "$(touch /tmp/no) `x`"),
        ("# a comment\n\n   # another\nNEW=last line", "last line"),
    ],
)
@pytest.mark.parametrize("end", ["\n", ""])
def test_dot_env_is_read_as_docker_compose_reads_it(clone, line, value, end):
    append(clone, line + end)

    assert settings_of(clone, "NEW", "APP_PORT") == [value, "8501"]


@pytest.mark.parametrize("line", ["APP_PORT 8600", "=8600", "APP-PORT=8600", 'NEW="no end'])
def test_a_line_that_is_not_a_setting_is_named(clone, line):
    number = len((clone / ".env").read_text().splitlines()) + 1
    append(clone, line + "\n")

    result = read_settings(clone)

    assert result.returncode == 1
    assert f"line {number} of .env is not NAME=value: {line}" in result.stderr


def test_a_missing_dot_env_is_named(clone):
    (clone / ".env").unlink()

    result = read_settings(clone)

    assert result.returncode == 1
    assert f"{clone}/.env is missing. Restore it with: git checkout .env" in result.stderr


def test_a_missing_setting_is_named(clone):
    lines = (clone / ".env").read_text().splitlines()
    (clone / ".env").write_text("\n".join(x for x in lines if not x.startswith("OUTPUT_DIR")))

    result = read_settings(clone)

    assert result.returncode == 1
    assert "OUTPUT_DIR is missing in .env" in result.stderr
    assert "unbound" not in result.stderr


@pytest.mark.parametrize("name", PORTS)
@pytest.mark.parametrize("port", ["http", "80 80", "", "0", "-1", "65536", "99999", "08000", "8.5"])
def test_what_is_not_a_port_is_named(name, port):
    result = read_settings(REPO_ROOT, **{name: port})

    assert result.returncode == 1
    assert f"{name} is '{port}', which is not a port number from 1 to 65535" in result.stderr


@pytest.mark.parametrize(
    ("first", "second"), [(a, b) for i, a in enumerate(PORTS) for b in PORTS[i + 1 :]]
)
def test_equal_ports_are_named(first, second):
    result = read_settings(REPO_ROOT, **{first: "7777", second: "7777"})

    assert result.returncode == 1
    assert f"{second} is 7777, as another port is. The four ports must differ." in result.stderr


@pytest.mark.parametrize("script", [SERVER, "start_app.sh", "demo.sh"])
def test_ports_are_checked_before_anything_starts(script, settings):
    result = run_script(script, **settings | {"APP_PORT": "99999"}, timeout=30)

    assert result.returncode == 1
    assert "APP_PORT is '99999'" in result.stderr
    assert "Runtime" not in result.stdout


@pytest.mark.parametrize("address", ["localhost", "::1", "1.2.3", "256.0.0.1", ""])
def test_a_bind_address_that_is_not_one_is_named(address):
    result = read_settings(REPO_ROOT, BIND_ADDRESS=address)

    assert result.returncode == 1
    assert "BIND_ADDRESS needs an IPv4 address" in result.stderr
    assert f"not '{address}'" in result.stderr


@pytest.mark.parametrize(("script", "name"), [("start_app.sh", "APP_PORT"), (SERVER, PORTS[0])])
def test_a_port_that_is_taken_on_the_other_address_of_localhost_is_named(settings, script, name):
    """A browser that opens http://localhost tries [::1] first, and shows that program's page."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with listener:
        port = str(listener.getsockname()[1])
        result = run_script(script, **settings | {name: port}, timeout=60)

    assert result.returncode == 1
    assert f"port {port} ({name}) is taken" in result.stderr


def test_dot_env_is_the_home_of_the_settings_that_the_readme_names():
    names = ("RUNTIME", "TRITON_IMAGE", *PORTS, "BIND_ADDRESS", "OUTPUT_DIR")

    values = dict(zip(names, settings_of(REPO_ROOT, *names), strict=True))

    assert values["RUNTIME"] == ""
    assert values["TRITON_IMAGE"].startswith("nvcr.io/nvidia/tritonserver:")
    assert [values[name] for name in PORTS] == ["8000", "8001", "8002", "8501"]
    assert values["BIND_ADDRESS"] == "127.0.0.1"
    assert values["OUTPUT_DIR"] == str(REPO_ROOT)
