"""The caller's locale, shell settings and tools change nothing: what works, works from anywhere."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import BIN, REPO_ROOT, run_script, script_environment, skip_or_fail

SCRIPTS = sorted(path.name for path in BIN.glob("*.sh"))
SERVER = "start_inference_server_cpu.sh"


def assert_works(result: subprocess.CompletedProcess, settings: dict[str, str]) -> None:
    """For `start_inference_server_cpu.sh --stop`, which goes through most of what scripts do."""
    port = settings["TRITON_HTTP_PORT"]
    assert result.returncode == 0, result.stderr
    assert f"No server of this project runs on port {port}." in result.stdout
    assert result.stderr == ""


@pytest.fixture(scope="session")
def locales(tmp_path_factory) -> Path:
    """A folder of compiled locales whose alphabets order letters unlike English."""
    folder = tmp_path_factory.mktemp("locales")
    if not shutil.which("localedef") or not Path("/usr/share/i18n/locales/tr_TR").exists():
        skip_or_fail("there are no sources of locales: apt-get install locales")
    for name in ("tr_TR", "az_AZ", "crh_UA", "et_EE", "tt_RU@iqtelif"):
        command = ["localedef", "-i", name, "-f", "UTF-8", folder / f"{name}.UTF-8"]
        subprocess.run(command, capture_output=True)  # exits with 1 for warnings
    return folder


@pytest.mark.parametrize("locale", ["tr_TR", "az_AZ", "crh_UA", "et_EE", "tt_RU@iqtelif", "none"])
@pytest.mark.parametrize("variable", ["LC_ALL", "LANG"])
def test_any_locale(locales, ports, locale, variable):
    environment = {"LC_ALL": "", "LOCPATH": str(locales), variable: f"{locale}.UTF-8"}
    result = run_script(SERVER, "--stop", RUNTIME="local", **ports, **environment)

    assert result.returncode == 0, result.stderr
    assert "No server of this project runs" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_cdpath(script):
    result = subprocess.run(
        [f"reverse_image_search/bin/{script}", "-h"],
        cwd=REPO_ROOT,
        env=script_environment(CDPATH=".:/tmp"),
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Usage: {script}")


HOSTILE = {
    "IFS": "IFS=/=_",
    "aliases": "shopt -s expand_aliases; alias echo=false cd=false source=false",
    "functions": "cd() { false; }; echo() { :; }; dirname() { :; }; source() { :; }; kill() { :; }",
    "errexit": "set -e; trap 'exit 9' ERR",
    "noglob and noclobber": "set -fCu",
    "nocasematch": "shopt -s nocasematch nullglob dotglob failglob",
    "posix": "set -o posix",
    "umask": "umask 0777",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bash_env(name, ports, tmp_path):
    """What bash reads before any script, where a user has asked for it."""
    (tmp_path / "env.sh").write_text(HOSTILE[name] + "\n")

    result = run_script(
        SERVER, "--stop", RUNTIME="local", BASH_ENV=str(tmp_path / "env.sh"), **ports
    )

    assert_works(result, ports)


@pytest.mark.parametrize(
    "variables",
    [
        {"BASH_FUNC_cd%%": "() { echo wrong; false; }"},
        {"BASH_FUNC_dirname%%": "() { echo /; }", "BASH_FUNC_grep%%": "() { false; }"},
        {"BASH_FUNC_printf%%": "() { :; }", "BASH_FUNC_[%%": "() { false; }"},
        {"BASH_FUNC_source%%": "() { :; }", "BASH_FUNC_die%%": "() { :; }"},
        {"SHELLOPTS": "errexit:noglob:noclobber:nounset"},
        {"SHELLOPTS": "posix"},
        {"BASHOPTS": "nocasematch:failglob:nullglob"},
        {"POSIXLY_CORRECT": "1"},
        {"GREP_OPTIONS": "-v", "GREP_COLOR": "always"},
        {"GLOBIGNORE": "*", "IFS": "="},
        {"LIB_DIR": "/", "REPO_ROOT": "/", "BIN": "/", "PYTHON": "/bin/false", "port": "1"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_inherited_variables_and_functions(variables, ports):
    result = run_script(SERVER, "--stop", RUNTIME="local", **ports, **variables)

    assert_works(result, ports)


@pytest.mark.parametrize(
    ("callers", "ours"), [("0022", "0022"), ("0077", "0077"), ("0777", "0077")]
)
def test_what_the_scripts_make_can_be_used_by_its_owner(callers, ours):
    """Otherwise the caller's umask holds: who keeps files private has a reason."""
    code = f"umask {callers}; source {BIN}/lib/settings.sh; umask"

    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True)

    assert result.stdout == f"{ours}\n", result.stderr


@pytest.mark.parametrize("shell", ["sh", "dash", "bash --posix", "ksh", "zsh"])
def test_called_through_another_shell(shell, ports):
    name, *options = shell.split()
    if not shutil.which(name):
        pytest.skip(f"there is no {name}")

    result = subprocess.run(
        [name, *options, BIN / SERVER, "--stop"],
        env=script_environment(RUNTIME="local", **ports),
        capture_output=True,
        text=True,
    )

    assert_works(result, ports)


@pytest.mark.parametrize("depth", [1, 2])
def test_called_through_a_link(tmp_path, ports, depth):
    link = tmp_path / "bin" / "serve"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(BIN / SERVER, link.parent))
    if depth == 2:
        (tmp_path / "again").symlink_to("bin/serve")
        link = tmp_path / "again"

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [link, *arguments],
            cwd=tmp_path,
            env=script_environment(RUNTIME="local", **ports),
            capture_output=True,
            text=True,
        )

    assert_works(run("--stop"), ports)
    assert run("-h").stdout.startswith(f"Usage: {SERVER}")
    assert f"See reverse_image_search/bin/{SERVER} -h" in run("--what").stderr


def test_called_by_its_name_in_its_own_folder_and_through_path(ports):
    environment = script_environment(RUNTIME="local", **ports)
    by_path = environment | {"PATH": f"{BIN}:{environment['PATH']}"}
    for command, env in (
        ([f"./{SERVER}", "--stop"], environment),
        (["bash", SERVER, "--stop"], environment),
        ([SERVER, "--stop"], by_path),
    ):
        result = subprocess.run(command, cwd=BIN, env=env, capture_output=True, text=True)
        assert_works(result, ports)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_old_bash_is_named_in_one_sentence(copy_repository, tmp_path, script):
    """macOS has bash 3.2. Nothing that it cannot read comes before the check of the version."""
    clone = copy_repository(tmp_path / "clone")
    library = clone / "reverse_image_search" / "bin" / "lib" / "settings.sh"
    check, rest = library.read_text().split("\nfi\n", 1)
    library.write_text(check.replace("BASH_VERSINFO[0]", "3") + "\nfi\n[[ this does not parse\n")
    assert rest

    result = run_script(script, repository=clone, timeout=30)

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "needs bash 4.4 or newer, this is" in result.stderr


def test_a_machine_without_timeout_finds_docker(isolated_path, tmp_path):
    """macOS has none."""
    (isolated_path / "docker").write_text("#!/usr/bin/env bash\n")
    (isolated_path / "docker").chmod(0o755)
    lib = BIN / "lib"
    code = f"source {lib}/settings.sh; read_settings; choose_runtime"

    result = subprocess.run(
        ["bash", "-c", code], env={"PATH": str(isolated_path)}, capture_output=True, text=True
    )

    assert result.stdout == "Runtime: docker (a Docker engine answers)\n", result.stderr


def test_a_checkout_with_windows_line_ends(tmp_path, ports):
    """`git config core.autocrlf true`, as Git for Windows sets it, and the folder used in WSL."""
    clone = tmp_path / "clone"
    command = ["git", "-c", "core.autocrlf=true", "clone", "--quiet", "--no-hardlinks"]
    cloned = subprocess.run([*command, REPO_ROOT, clone], capture_output=True, text=True)
    if cloned.returncode != 0:
        skip_or_fail(f"the repository cannot be cloned: {cloned.stderr}")

    result = run_script("demo.sh", "-h", repository=clone, timeout=30)

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: demo.sh")
    assert b"\r" not in (clone / ".env").read_bytes()


def test_all_gpus_are_counted_however_slowly_they_are_listed(tmp_path):
    """`grep -q` closes the pipe at the first line; the writer of the second then fails."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/usr/bin/env bash\nfor i in {0..7}; do echo "GPU $i: NVIDIA H100"; sleep 0.01; done\n'
    )
    program.chmod(0o755)
    lib = BIN / "lib"
    code = (
        f"set -euo pipefail; source {lib}/settings.sh\n"
        "for _ in {1..5}; do has_nvidia_gpu && echo yes || echo no; done"
    )

    result = subprocess.run(
        ["bash", "-c", code],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )

    assert result.stdout.split() == ["yes"] * 5, result.stderr


def test_a_taken_port_is_named_where_lsof_says_nothing(isolated_path, settings):
    """As for a port of another user's process, on a machine without ss."""
    import socket

    (isolated_path / "lsof").write_text("#!/usr/bin/env bash\nexit 1\n")
    (isolated_path / "lsof").chmod(0o755)
    (isolated_path / "awk").symlink_to(shutil.which("awk"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = subprocess.run(
            [BIN / "demo.sh"],
            env={**settings, "PATH": str(isolated_path), "TRITON_HTTP_PORT": port},
            capture_output=True,
            text=True,
        )

    assert result.returncode == 1
    assert f"port {port} (TRITON_HTTP_PORT) is taken. Stop that program" in result.stderr
