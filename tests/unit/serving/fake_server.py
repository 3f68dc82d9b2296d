"""Stands for tritonserver: answers the readiness check and has a child process for each model.

    fake_server.py PORT [BEHAVIOR]

BEHAVIOR is what it does once it has been asked whether it is ready: nothing (default), `die`,
`lose-model`, `switch-model` (to a process of a new version), `lose-other` (a child that runs no
model), or `eat` memory. `crash` ends it at once.
"""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time

port, behavior = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
if behavior == "crash":
    sys.exit(3)


def start_model(name: str) -> subprocess.Popen:
    """A process that sleeps, with its name where the Python backend has it."""
    command = ["triton_python_backend_stub", "600", *"000000", name]
    return subprocess.Popen(command, executable="/bin/sleep")


models = [start_model(name) for name in "12"]
marker = os.environ.get("ONCE")  # a file: what is done once is not done by the next server
if marker and os.path.exists(marker):
    behavior = ""


def misbehave() -> None:
    time.sleep(0.5)
    if marker:
        open(marker, "w").close()
    if behavior == "die":
        os.kill(os.getpid(), signal.SIGABRT)
    if behavior == "lose-model":
        models[0].kill()
    if behavior == "switch-model":
        start_model("1")
        time.sleep(0.5)
        models[0].kill()
    if behavior == "lose-other":
        subprocess.run(["sleep", "0.5"])
    if behavior == "eat":
        chunks = []
        while True:
            chunks.append(bytearray(b"x") * 2**24)
            time.sleep(0.01)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/health/ready" else 404)
        self.end_headers()
        if behavior:
            threading.Thread(target=misbehave, daemon=True).start()

    def log_message(self, *_) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
