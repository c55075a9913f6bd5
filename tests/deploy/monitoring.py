"""Rules and dashboard as files: promtool, names, structure."""

import re
import tempfile

import report
import yaml

PROMETHEUS = report.DEPLOY / "prometheus"
# A name of the server's, or of a recording rule.
NAME = re.compile(r"\b(?:\w+:)?verdict_\w+(?::\w+)?")


def rules():
    """Every rule of every file."""
    for file in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


def panels():
    return [panel for panel in report.dashboard()["panels"] if panel["type"] != "row"]


def autoscaler_queries():
    """Queries of the adapter and of KEDA, by name, as Prometheus gets them for pod verdict-0."""
    adapter = yaml.safe_load((PROMETHEUS / "adapter.yaml").read_text())
    for rule in adapter["rules"]["custom"]:
        query = rule["metricsQuery"]
        for word, value in (
            ("<<.Series>>", rule["seriesQuery"].split("{")[0]),
            ("<<.LabelMatchers>>", 'namespace="verdict",pod=~"verdict-0"'),
            ("<<.GroupBy>>", "pod"),
        ):
            query = query.replace(word, value)
        yield f"adapter {rule['name']['as']}", query
    scaled = yaml.safe_load((report.DEPLOY / "kubernetes/components/keda/scaledobject.yaml").read_text())
    for number, trigger in enumerate(scaled["spec"]["triggers"]):
        yield f"KEDA trigger {number}", trigger["metadata"]["query"]


def expressions():
    """Every expression there is, by where it is."""
    for rule in rules():
        yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']!r}", target["expr"]
    for annotation in report.dashboard()["annotations"]["list"]:
        yield f"annotation {annotation['name']!r}", annotation["expr"]
    yield from autoscaler_queries()


def unknown_names():
    """Names that neither docs/metrics.md nor a recording rule has."""
    known = set(re.findall(r"^\| `(verdict_\w+)`", (report.ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for where, expression in expressions():
        for name in NAME.findall(expression):
            bare = re.sub(r"_(bucket|sum|count)$", "", name)
            if not (name in recorded if ":" in name else name in known or bare in known):
                yield f"{where}: {name} is neither a metric nor recorded"


def dashboard_problems():
    """What Grafana would show wrongly without a word."""
    shown = report.dashboard()
    taken, ids = {}, set()
    for panel in shown["panels"]:
        if panel["id"] in ids:
            yield f"{panel['title']}: id {panel['id']} is taken"
        ids.add(panel["id"])
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"{panel['title']}: wider than the 24 columns"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                if other != panel["title"]:
                    yield f"{panel['title']}: lies over {other}"
        if panel["type"] != "row" and not panel.get("description"):
            yield f"{panel['title']}: has no description"
    variables = {variable["name"] for variable in shown["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", str(shown))) - {"__rate_interval", "__all"}
    for name in used - variables:
        yield f"${name} is no variable"


def alert_problems():
    """Alerts without a section in the runbook, sections without an alert."""
    alerts = [rule for rule in rules() if "alert" in rule]
    text = (report.ROOT / "docs/operations.md").read_text()
    sections = set(re.findall(r"^#+ (Verdict\w+)$", text, re.MULTILINE))
    names = {rule["alert"] for rule in alerts}
    for name in sorted(names - sections):
        yield f"{name} has no section in docs/operations.md"
    for name in sorted(sections - names):
        yield f"docs/operations.md has a section for {name}, which is no alert"
    tested = "".join(file.read_text() for file in (PROMETHEUS / "tests").glob("*.yml"))
    for rule in alerts:
        fires = re.search(rf"alertname: {rule['alert']}\n\s+exp_alerts:\n\s+- exp_labels", tested)
        if not fires:
            yield f"{rule['alert']}: no unit test in which it fires"
        if rule["labels"].get("severity") not in ("page", "ticket"):
            yield f"{rule['alert']}: its severity is neither page nor ticket"
        if "summary" not in rule.get("annotations", {}):
            yield f"{rule['alert']}: no summary"


def unexplained_settings():
    """Settings that the runbook's groups leave out, and flags there that are none."""
    source = (report.ROOT / "src/config/settings.rs").read_text()
    settings = {name.lower().replace("_", "-") for name in re.findall(r'env = "VERDICT_(\w+)"', source)}
    section = (report.ROOT / "docs/operations.md").read_text().split("\n## ")[1]
    flags = set(re.findall(r"`--([a-z-]+)`", section))
    yield from (f"--{name} is in no group of docs/operations.md" for name in sorted(settings - flags))
    yield from (f"docs/operations.md groups --{name}, which is no setting" for name in sorted(flags - settings))


def unexplained_metrics():
    """Metrics that the runbook's questions leave out, and names there that are none."""
    metrics = set(re.findall(r"^\| `(verdict_\w+)`", (report.ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    section = (report.ROOT / "docs/operations.md").read_text().split("\n## Metrics, by question\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(verdict_\w+)`", section))
    yield from (f"{name} answers no question in docs/operations.md" for name in sorted(metrics - named))
    yield from (f"docs/operations.md asks for {name}, which is no metric" for name in sorted(named - metrics))


def scrape_config():
    """kubernetes.yml with the discovery taken out, which Debian's promtool is built without."""
    config = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())
    for job in config["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    config["rule_files"] = [str(PROMETHEUS / file) for file in config["rule_files"]]
    return yaml.safe_dump(config)


def check():
    report.result("names in rules, dashboard and autoscalers", unknown_names())
    report.result("dashboard's structure", dashboard_problems(), f"{len(panels())} panels")
    report.result("alerts have a section in the runbook and a test", alert_problems())
    report.result("settings are in the runbook's groups", unexplained_settings())
    report.result("metrics are in the runbook's questions", unexplained_metrics())
    promtool = report.tool("promtool")
    if not promtool:
        report.skip("promtool's checks and unit tests of the rules", "promtool is not installed (Debian: prometheus)")
        return
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    report.result("promtool check rules", report.command(promtool, "check", "rules", *files)[1])
    tests = sorted((PROMETHEUS / "tests").glob("*.yml"))
    report.result("promtool test rules", report.command(promtool, "test", "rules", *tests)[1])
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as scrape:
        scrape.write(scrape_config())
        scrape.flush()
        for name, file in (("prometheus.yml", PROMETHEUS / "prometheus.yml"), ("kubernetes.yml", scrape.name)):
            report.result(f"promtool check config {name}", report.command(promtool, "check", "config", file)[1])
