"""The manifests of deploy/kubernetes: valid for the versions that the page names, and hardened."""

from __future__ import annotations

import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from tests.running import REPO_ROOT

FOLDER = REPO_ROOT / "reverse_image_search/deploy/kubernetes"
VERSIONS = ("1.29", "1.33", "1.37")  # of Kubernetes, named in doc/many_machines.md
COMPOSE = yaml.safe_load((REPO_ROOT / "docker-compose.yml").read_text())
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", (REPO_ROOT / ".env").read_text(), re.MULTILINE))


def resources_of(overlay: str) -> list[dict]:
    """What `kubectl apply --kustomize` sends; where there is no kubectl, the base's files."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", FOLDER / overlay]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        kustomization = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())
        files = [FOLDER / "base" / name for name in kustomization["resources"]]
        text = "\n---\n".join(path.read_text() for path in files)
    return [resource for resource in yaml.safe_load_all(text) if resource]


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def overlay(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def resources(overlay: str) -> dict[tuple[str, str], dict]:
    """By kind and name."""
    return {(each["kind"], each["metadata"]["name"]): each for each in resources_of(overlay)}


def pod(resources: dict, name: str) -> tuple[dict, dict]:
    """Pod and only container of a Deployment."""
    spec = resources["Deployment", name]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


@pytest.mark.parametrize("version", VERSIONS)
def test_resources_are_valid(resources, version):
    for resource in resources.values():
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelled_field_is_invalid(resources):
    """Or the test above would prove nothing."""
    policy = resources["PodDisruptionBudget", "triton"]
    wrong = policy | {"spec": policy["spec"] | {"maxUnavailible": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_image_and_ports_are_those_of_the_settings(resources):
    _, triton = pod(resources, "triton")
    assert triton["image"] == SETTINGS["TRITON_IMAGE"]
    ports = {port["name"]: str(port["containerPort"]) for port in triton["ports"]}
    assert ports == {
        name: SETTINGS[f"TRITON_{name.upper()}_PORT"] for name in ("http", "grpc", "metrics")
    }
    (port,) = pod(resources, "app")[1]["ports"]
    assert str(port["containerPort"]) == SETTINGS["APP_PORT"]


def test_triton_is_started_as_by_docker_compose(resources):
    _, triton = pod(resources, "triton")
    command = COMPOSE["x-triton"]["command"].replace("${TRITON_ARGUMENTS:-}", "").split()
    assert triton["command"] + triton["args"] == command


@pytest.mark.parametrize("name", ["triton", "balancer", "app"])
def test_containers_can_do_nothing_else(resources, name):
    spec, container = pod(resources, name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="overlays need kubectl's kustomize")
def test_only_the_gpu_overlay_asks_for_a_gpu(overlay, resources):
    _, triton = pod(resources, "triton")
    assert ("nvidia.com/gpu" in triton["resources"]["limits"]) == (overlay == "gpu")


def test_every_selector_finds_the_pods_it_is_for(resources):
    labels = {
        name: resource["spec"]["template"]["metadata"]["labels"]
        for (kind, name), resource in resources.items()
        if kind == "Deployment"
    }
    for (kind, name), resource in resources.items():
        if kind == "Service":
            selector = resource["spec"]["selector"]
        elif kind == "PodDisruptionBudget":
            selector = resource["spec"]["selector"]["matchLabels"]
        else:
            continue
        assert selector.items() <= labels[name].items()
    sources = {
        name: [
            peer["podSelector"]["matchLabels"]
            for rule in resources["NetworkPolicy", name]["spec"]["ingress"]
            for peer in rule["from"]
            if "namespaceSelector" not in peer
        ]
        for name in ("triton", "balancer")
    }
    assert [selector.items() <= labels["balancer"].items() for selector in sources["triton"]] == [
        True
    ]
    assert [selector.items() <= labels["app"].items() for selector in sources["balancer"]] == [True]


def test_balancer_is_what_the_app_calls_and_triton_what_the_balancer_looks_up(resources):
    environment = {each["name"]: each.get("value") for each in pod(resources, "app")[1]["env"]}
    (port,) = resources["Service", "balancer"]["spec"]["ports"]
    assert environment["TRITON_URL"] == f"http://balancer:{port['port']}"
    environment = {each["name"]: each.get("value") for each in pod(resources, "balancer")[1]["env"]}
    assert environment["REPLICAS"] == "triton.$(NAMESPACE).svc.cluster.local:8000"
    assert resources["Service", "triton"]["spec"]["clusterIP"] == "None"


def test_autoscaler_reads_the_metric_that_the_adapter_makes(resources):
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (metric,) = resources["HorizontalPodAutoscaler", "triton"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
