"""Kubernetes' manifests: rendered by kubectl, held to the schemas, and to each other."""

import json
import os
import pathlib
import re
import tempfile
import tomllib
import warnings

import report

KUBERNETES = report.DEPLOY / "kubernetes"
# The oldest and the newest that the manifests are for: preStop's sleep is on since 1.30.
VERSIONS = ("1.30", "1.37")
CRDS = ("keda.sh/", "monitoring.coreos.com/")
# After the grace period: 2 s for each port's connections, 2 s for the last spans of traces.
FAREWELL_SECONDS = 6


def render(kubectl, folder):
    text, problems = report.command(kubectl, "kustomize", folder)
    return report.documents(text) if not problems else [], problems


def with_component(kubectl, component):
    """The base with one component, as an overlay would have it."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder).resolve()
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(KUBERNETES / "base", place)],
            "components": [os.path.relpath(component, place)],
        }
        (place / "kustomization.yaml").write_text(json.dumps(kustomization))
        return render(kubectl, place)


def schema_problems(resources):
    import kubernetes_validate

    for resource in resources:
        name = f"{resource['kind']} {resource['metadata']['name']}"
        if resource["apiVersion"].startswith(CRDS):
            continue
        for version in VERSIONS:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    kubernetes_validate.validate(resource, version, strict=True)
            except Exception as error:  # noqa: BLE001 (of several kinds, none of which is to pass)
                yield f"{name}, Kubernetes {version}: {str(error).splitlines()[0]}"


def crd_problems(resources):
    own = [resource for resource in resources if resource["apiVersion"].startswith(CRDS)]
    folder = report.node_modules("@kubernetes-models/keda")
    text, problems = report.command("node", report.HERE / "crds.mjs", folder, stdin=json.dumps(own))
    return [*problems, *text.splitlines()]


def selects(selector, labels):
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)?", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, None: 1, "m": 60, "h": 3600}[unit]


def of_kind(resources, kind):
    return [resource for resource in resources if resource["kind"] == kind]


def sense_problems(resources):
    """What a schema cannot say."""
    deployment = of_kind(resources, "Deployment")[0]
    pod = deployment["spec"]["template"]
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    container = spec["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    selectors = [("Deployment", deployment["spec"]["selector"]["matchLabels"])]
    selectors += [("Service", service["spec"]["selector"]) for service in of_kind(resources, "Service")]
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selectors += [(kind, one["spec"][field].get("matchLabels")) for one in of_kind(resources, kind)]
    selectors += [("PodMonitor", one["spec"]["selector"]["matchLabels"]) for one in of_kind(resources, "PodMonitor")]
    for constraint in spec["topologySpreadConstraints"]:
        selectors.append(("topologySpreadConstraints", constraint["labelSelector"]["matchLabels"]))
    for kind, selector in selectors:
        if not selects(selector, labels):
            yield f"{kind}: {selector} does not select the pods, {labels}"

    used = [port["targetPort"] for service in of_kind(resources, "Service") for port in service["spec"]["ports"]]
    probes = [container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    used += [probe["httpGet"]["port"] for probe in probes if "httpGet" in probe]
    for probe in (probe["grpc"] for probe in probes if "grpc" in probe):
        # A gRPC probe cannot name its port, and the service is one that the server reports on.
        if probe["port"] != ports["http"]:
            yield f"the gRPC probe asks port {probe['port']}"
        if f'"{probe["service"]}"' not in (report.ROOT / "src/server/grpc/mod.rs").read_text():
            yield f"the gRPC probe asks for {probe['service']}, of which the server does not tell"
    for policy in of_kind(resources, "NetworkPolicy"):
        used += [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    used += [point["port"] for one in of_kind(resources, "PodMonitor") for point in one["spec"]["podMetricsEndpoints"]]
    for name in set(used) - set(ports):
        yield f"no container port is named {name}"

    config = next(one for one in of_kind(resources, "ConfigMap") if "verdict.toml" in one["data"])
    settings = tomllib.loads(config["data"]["verdict.toml"])
    for setting, port in (("port", "http"), ("admin_port", "admin")):
        expected = settings.get(setting, {"http": 8080, "admin": 9090}[port])
        if ports[port] != expected:
            yield f"{setting} is {expected}, the container's port {port} {ports[port]}"
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = pause + seconds(settings["grace"]) + FAREWELL_SECONDS
    if spec["terminationGracePeriodSeconds"] < needed:
        yield f"terminationGracePeriodSeconds is {spec['terminationGracePeriodSeconds']}, the drain takes {needed}"
    volume = next(volume for volume in spec["volumes"] if volume.get("configMap"))
    if volume["configMap"]["name"] != config["metadata"]["name"]:
        yield f"the pod mounts {volume['configMap']['name']}, the settings are in {config['metadata']['name']}"

    scalers = of_kind(resources, "HorizontalPodAutoscaler") + of_kind(resources, "ScaledObject")
    if len(scalers) > 1:
        yield "two autoscalers of one Deployment"
    if bool(scalers) == ("replicas" in deployment["spec"]):
        yield "replicas belong to the autoscaler, or to the Deployment if there is none"
    for scaler in scalers:
        if scaler["spec"]["scaleTargetRef"]["name"] != deployment["metadata"]["name"]:
            yield f"{scaler['kind']}: scales another Deployment"


def security_problems(resources):
    """The restricted pod security standard, and a read-only file system."""
    spec = of_kind(resources, "Deployment")[0]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    pod, own = spec["securityContext"], container["securityContext"]
    wanted = {
        "runAsNonRoot": pod.get("runAsNonRoot") is True,
        "seccompProfile": pod.get("seccompProfile", {}).get("type") == "RuntimeDefault",
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
        "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
        "automountServiceAccountToken": spec.get("automountServiceAccountToken") is False,
        "memory limit": "memory" in container["resources"].get("limits", {}),
        "volumes are read only": all(mount.get("readOnly") for mount in container["volumeMounts"]),
    }
    user = re.search(r"^USER (\d+):(\d+)$", (report.ROOT / "Dockerfile").read_text(), re.MULTILINE)
    wanted["the image's user"] = (pod.get("runAsUser"), pod.get("runAsGroup")) == tuple(map(int, user.groups()))
    return [f"{name} is not as it must be" for name, holds in wanted.items() if not holds]


def hpa_problems(resources):
    """Metrics that the autoscaler asks for and the adapter has not."""
    import monitoring
    import yaml

    adapter = yaml.safe_load((monitoring.PROMETHEUS / "adapter.yaml").read_text())
    served = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    for scaler in of_kind(resources, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            name = metric["pods"]["metric"]["name"]
            if name not in served:
                yield f"{name} is no metric of deploy/prometheus/adapter.yaml"


def check():
    kubectl = report.tool("kubectl")
    if not kubectl:
        report.skip("Kubernetes manifests", "kubectl is not installed (tests/deploy/requirements.txt)")
        return
    try:
        import kubernetes_validate  # noqa: F401

        schemas = True
    except ModuleNotFoundError:
        report.skip("Kubernetes schemas", "python3 has no kubernetes-validate (tests/deploy/requirements.txt)")
        schemas = False
    crds = report.tool("node") and report.node_modules("@kubernetes-models/keda")
    if not crds:
        report.skip("schemas of KEDA and the Prometheus operator", "no node with tests/deploy/package.json's packages")

    overlays = [KUBERNETES / "base", *sorted((KUBERNETES / "overlays").iterdir())]
    builds = [(str(folder.relative_to(report.ROOT)), *render(kubectl, folder)) for folder in overlays]
    for component in sorted((KUBERNETES / "components").iterdir()):
        builds.append((str(component.relative_to(report.ROOT)), *with_component(kubectl, component)))
    for name, resources, problems in builds:
        problems = list(problems)
        problems += schema_problems(resources) if schemas else []
        problems += crd_problems(resources) if crds else []
        # What has the wrong shape is not asked what it means.
        if resources and not problems:
            problems += [*sense_problems(resources), *security_problems(resources), *hpa_problems(resources)]
        report.result(f"kubectl kustomize {name}", problems, f"{len(resources)} resources")
    for name in ("prometheus", "grafana"):
        resources, problems = render(kubectl, report.DEPLOY / name)
        problems = list(problems) + (list(schema_problems(resources)) if schemas else [])
        report.result(f"kubectl kustomize deploy/{name}", problems, f"{len(resources)} resources")
