"""The Grafana dashboard's queries against the metrics of a real server, read by Debian's
Prometheus with the configuration of the compose file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reverse_image_search import contract
from reverse_image_search.client import Client
from tests.running import REPO_ROOT, Triton, free_ports, skip_or_fail, wait_until

MONITORING = REPO_ROOT / "reverse_image_search" / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "triton.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
MODELS = {contract.IMAGE_ENCODER.name, contract.VECTOR_SIMILARITY.name}


def name_and_labels(query: str) -> tuple[set[str], set[str]]:
    """Metrics that a query reads, and labels that it groups by."""
    labels = {
        label.strip()
        for group in re.findall(r"by \(([^)]*)\)", query)
        for label in group.split(",")
    }
    return set(re.findall(r"\bnv_\w+", query)), labels


def read(url: str) -> str:
    """The text at a loopback address, which no proxy should be asked for."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def metrics(triton: Triton, client: Client) -> dict[str, set[str]]:
    """Label names of each metric that the server shows, after a search."""
    client.search(np.zeros((4, 28, 28), np.uint8))
    text = read(f"http://127.0.0.1:{triton.metrics_port}/metrics")
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize("query", [query for query in QUERIES if "nv_" in query])
def test_query_names_metrics_and_labels_that_the_server_has(
    query: str, metrics: dict[str, set[str]]
) -> None:
    names, labels = name_and_labels(query)
    if all(name.startswith("nv_gpu_") for name in names):
        pytest.skip("the server shows GPU metrics only where it has a GPU")
    for name in names:
        assert name in metrics
        assert labels <= metrics[name]


@pytest.fixture(scope="module")
def prometheus(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that reads the server as monitoring/prometheus.yml says."""
    program = shutil.which("prometheus")
    if program is None:
        skip_or_fail("Debian's package prometheus; tests/docker/install_engine.sh installs it")
    folder = tmp_path_factory.mktemp("prometheus")
    # The server's name in the compose network means nothing here; the rest is as it is.
    settings = (MONITORING / "prometheus.yml").read_text()
    assert settings.count("triton:8002") == 1
    settings = settings.replace("triton:8002", f"127.0.0.1:{triton.metrics_port}")
    (folder / "prometheus.yml").write_text(settings.replace("scrape_interval: 5s", SCRAPE))
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=(folder / "log").open("w"),
    )  # fmt: skip
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


SCRAPE = "scrape_interval: 1s"  # five times faster than in the compose file: a test has no time


def ask(prometheus: str, query: str) -> list[dict]:
    """Result of an instant query, as Grafana would ask it of the last minute."""
    query = query.replace("$__rate_interval", "1m")
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    return json.loads(read(url))["data"]["result"]


def test_prometheus_answers_every_query_with_the_traffic_that_there_was(
    prometheus: str, client: Client
) -> None:
    def scraped() -> bool:
        try:
            return ask(prometheus, 'count_over_time(up{job="triton"}[1m])')[0]["value"][1] >= "3"
        except (OSError, IndexError):
            return False

    wait_until(scraped, "three scrapes")
    for _ in range(5):
        client.search(np.zeros((8, 28, 28), np.uint8))
    rate = "sum by (model) (rate(nv_inference_request_success[1m])) > 0"
    wait_until(lambda: len(ask(prometheus, rate)) == len(MODELS), "the searches in the metrics")
    for query in QUERIES:
        result = ask(prometheus, query)
        names, _ = name_and_labels(query)
        if names and all(name.startswith("nv_gpu_") for name in names):
            continue
        assert result, f"no answer to {query}"
        assert all(np.isfinite(float(series["value"][1])) for series in result), query
        if "by (model" in query:
            assert {series["metric"]["model"] for series in result} == MODELS
    (panel,) = (panel for panel in DASHBOARD["panels"] if panel["title"] == "Batch size")
    sizes = ask(prometheus, panel["targets"][0]["expr"])
    assert [float(size["value"][1]) for size in sizes] == pytest.approx([8, 8])


def test_grafana_reads_the_dashboard_from_where_compose_puts_it() -> None:
    provider = (MONITORING / "grafana" / "dashboards" / "dashboards.yml").read_text()
    compose = (REPO_ROOT / "docker-compose.yml").read_text()
    assert "deploy/monitoring/grafana, target: /etc/grafana/provisioning" in compose
    assert "path: /etc/grafana/provisioning/dashboards" in provider
    (dashboard,) = Path(MONITORING / "grafana" / "dashboards").glob("*.json")
    assert f"/etc/grafana/provisioning/dashboards/{dashboard.name}" in compose
    datasource = (MONITORING / "grafana" / "datasources" / "prometheus.yml").read_text()
    used = {
        target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]
    }
    assert used == {re.search(r"uid: (\w+)", datasource)[1]}
