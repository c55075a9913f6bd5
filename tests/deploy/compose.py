"""The Compose file: its specification's schema, and that what it mounts and names is there."""

import contextlib
import json
import subprocess
import sys
import tempfile

import live
import report
import yaml

FILE = report.DEPLOY / "compose.yaml"


def mounts():
    """Host paths of bind mounts that are not there."""
    compose = yaml.safe_load(FILE.read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                if not (FILE.parent / source).exists():
                    yield f"{name}: {source} is not there"
            elif source not in compose["volumes"]:
                yield f"{name}: the volume {source} is not declared"
        context = service.get("build", {}).get("context")
        if context and not (FILE.parent / context / "Dockerfile").exists():
            yield f"{name}: no Dockerfile in {context}"
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name}: port {port} is open to the network"


def addresses():
    """Hosts that one service's file names and no service has."""
    services = yaml.safe_load(FILE.read_text())["services"]
    scrape = yaml.safe_load((report.DEPLOY / "prometheus/prometheus.yml").read_text())
    source = yaml.safe_load((report.DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    hosts = [
        target.split(":")[0]
        for job in scrape["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    ]
    hosts += [datasource["url"].split("/")[2].split(":")[0] for datasource in source["datasources"]]
    for host in hosts:
        if host not in services:
            yield f"{host} is no service of {FILE.name}"


def provisioning():
    """The dashboard must be mounted where Grafana's provider looks."""
    providers = yaml.safe_load((report.DEPLOY / "grafana/provisioning/dashboards/verdict.yaml").read_text())
    grafana = yaml.safe_load(FILE.read_text())["services"]["grafana"]
    inside = [volume.split(":")[1] for volume in grafana["volumes"]]
    for provider in providers["providers"]:
        path = provider["options"]["path"]
        if not any(mount.startswith(f"{path}/") and mount.endswith(".json") for mount in inside):
            yield f"no dashboard is mounted below {path}"


def composed():
    """As docker-compose puts it together. Debian's (1.29) does not know the project's name yet."""
    compose = report.tool("docker-compose")
    if not compose:
        report.skip("Compose: put together", "no docker-compose")
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(FILE.read_text().replace("\nname: verdict\n", "\n"))
        file.flush()
        words = ["--project-directory", FILE.parent, "--profile", "load", "-f", file.name, "config"]
        said, problems = report.command(compose, *words)
    services = set(yaml.safe_load(said)["services"]) if not problems else set()
    if not problems and services != {"verdict", "prometheus", "grafana", "load"}:
        problems = [f"has {sorted(services)}"]
    report.result("Compose: put together by docker-compose", problems)


def check():
    report.result("Compose: mounts, ports, hosts", [*mounts(), *addresses(), *provisioning()])
    composed()
    validate = report.tool("check-jsonschema")
    if not validate:
        report.skip("Compose: schema", "no check-jsonschema (tests/deploy/requirements.txt)")
        return
    problems = report.command(validate, "--builtin-schema", "vendor.compose-spec", FILE)[1]
    report.result("Compose: schema of its specification", problems)


def check_load(binary):
    """The load generator, for three seconds."""
    with contextlib.ExitStack() as stack:
        words = [binary, "serve", *live.FLAGS]
        server = stack.enter_context(live.running(words, stderr=subprocess.PIPE))
        root = f"http://{live.addresses(server)[0]}"
        said, problems = report.command(
            sys.executable, report.DEPLOY / "load.py", root, "--rate", "10", "--seconds", "3"
        )
        answered = json.loads(said) if not problems else {"requests": 0, "statuses": {}}
        unknown = set(answered["statuses"]) - {"200", "429"}
        if not problems and (unknown or not answered["statuses"].get("200")):
            problems = [said]
        report.result("Compose: the load generator is answered", problems, said.strip())
