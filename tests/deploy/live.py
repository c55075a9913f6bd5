"""Every query, asked of a real Prometheus that scrapes the real server under load.

A query fails if Prometheus refuses it, and, except for alerts, which are to be silent, if it
has no data. The load makes what the panels show: scores, reasons, wrong and late requests,
refusals by the queue and by the explain lane, clients that leave.
"""

import contextlib
import http.client
import json
import math
import pathlib
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import monitoring
import report

# The server takes the settings of Kubernetes, and a queue that a few clients can fill.
FLAGS = (
    "--host 127.0.0.1 --port 0 --admin-port 0 --log-format json --threads 1 "
    "--max-documents 48 --queue-pairs 96 --queue-explanations 6 --max-explained 6"
).split()
# Scraped each second; a rate needs a few.
RATE_INTERVAL = "15s"
# How long the load goes on at most; it ends when all queries have data.
MOST_SECONDS = 90
WORDS = (
    "boil eggs six minutes soft yolk capital australia canberra city waterproof hiking boots leather git reset "
    "last commit migraine headache triptans rest roast chicken penguins swim whale largest mammal credit score"
).split()


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, address):
        self.host, port = address.split(":")
        self.port = int(port)
        self.over = threading.Event()
        self.statuses = {}
        jobs = [self.score] * 3 + [self.explain] * 3 + [self.wrong, self.late, self.other_route, self.leave]
        self.threads = [threading.Thread(target=self.repeat, args=(job, i), daemon=True) for i, job in enumerate(jobs)]
        for thread in self.threads:
            thread.start()

    def repeat(self, job, seed):
        chance = random.Random(seed)
        while not self.over.wait(chance.random() * 0.2):
            job(chance)

    def text(self, chance, count):
        return " ".join(chance.choices(WORDS, k=count))

    def body(self, chance, count, **more):
        documents = [self.text(chance, 30) for _ in range(count)]
        return {"query": self.text(chance, 4), "documents": documents, **more}

    def ask(self, path, body):
        with contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=30)) as connection:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1

    def score(self, chance):
        self.ask("/score", self.body(chance, 40))

    def explain(self, chance):
        self.ask("/score?explain=true", self.body(chance, 6, explain_top_n=6))

    def wrong(self, chance):
        self.ask("/score", {"query": self.text(chance, 3)})

    def late(self, chance):
        self.ask("/score", self.body(chance, 20, deadline_ms=1))

    def other_route(self, chance):
        self.ask("/rerank", {"query": self.text(chance, 3), "texts": [self.text(chance, 20)]})

    def leave(self, chance):
        """Asks, and is gone before the answer; the pairs that wait are dropped."""
        body = json.dumps(self.body(chance, 40)).encode()
        head = (
            f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((self.host, self.port), timeout=30) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(0.01)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=60)


@contextlib.contextmanager
def running(words, **options):
    """A process that is ended, whatever happens; SIGTERM is how both are told to stop."""
    process = subprocess.Popen([str(word) for word in words], text=True, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def addresses(server):
    """The server's two addresses, once it is ready; what it logs after that is read and left."""
    main = admin = None
    for line in server.stderr:
        found = re.search(r'"address":"([0-9.:]+)","admin":"([0-9.:]+)"', line)
        main, admin = found.groups() if found else (main, admin)
        if '"ready"' in line:
            threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
            return main, admin
    raise SystemExit(f"the server ended by itself with {server.wait()}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configuration(admin):
    return json.dumps(  # JSON is YAML
        {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(monitoring.PROMETHEUS / "rules/*.yml")],
            "scrape_configs": [
                {
                    "job_name": "verdict",
                    "static_configs": [{"targets": [admin], "labels": {"namespace": "verdict", "pod": "verdict-0"}}],
                }
            ],
        }
    )


class Prometheus:
    def __init__(self, port):
        self.root = f"http://127.0.0.1:{port}"

    def get(self, path, **query):
        url = f"{self.root}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def wait(self):
        for _ in range(300):
            # Refused before it listens, and 503 until it has read its own log.
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.root}/-/ready", timeout=10):
                return
            time.sleep(0.1)
        raise SystemExit("Prometheus did not start")

    def ask(self, expression):
        """What is wrong with an expression: None, an error, or that it has no data."""
        answer = self.get("query", query=expression)
        if answer["status"] != "success":
            return answer["error"]
        values = [sample["value"][1] for sample in answer["data"]["result"]]
        return None if any(not math.isnan(float(value)) for value in values) else "no data"


def as_grafana_sends_it(expression):
    for name, value in (("$__rate_interval", RATE_INTERVAL), ("$job", ".*"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    return expression


def wanted():
    """Expressions that must have data, and those that must only be understood."""
    alerts = {rule["alert"] for rule in monitoring.rules() if "alert" in rule}
    data, understood = [], []
    for where, expression in monitoring.expressions():
        silent = where in alerts or where.startswith("annotation")
        (understood if silent else data).append((where, as_grafana_sends_it(expression)))
    return data, understood


def wait_for_data(prometheus, expressions):
    """What has no data when the time is over, or is refused at once."""
    missing, until = dict(enumerate(expressions)), time.monotonic() + MOST_SECONDS
    while True:
        answers = {number: prometheus.ask(expression) for number, (_, expression) in missing.items()}
        missing = {number: expressions[number] for number, answer in answers.items() if answer}
        if not missing or time.monotonic() > until:
            return [f"{where}: {answers[number]}: {text}" for number, (where, text) in missing.items()]
        time.sleep(1)


def rule_problems(prometheus):
    """Rules that Prometheus itself could not evaluate."""
    for group in prometheus.get("rules")["data"]["groups"]:
        for rule in group["rules"]:
            if rule["health"] == "err":
                yield f"{rule['name']}: {rule['lastError']}"


def scraped(stack, binary, prometheus):
    """A server, a Prometheus that scrapes it, and clients that ask it, until the stack is closed."""
    settings = report.DEPLOY / "kubernetes/base/verdict.toml"
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = stack.enter_context(running([binary, "serve", "--config", settings, *FLAGS], stderr=subprocess.PIPE))
    main, admin = addresses(server)
    (folder / "prometheus.yml").write_text(configuration(admin))
    port = free_port()
    words = [
        prometheus,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    stack.enter_context(running(words))
    asked = Prometheus(port)
    asked.wait()
    load = Load(main)
    stack.callback(load.stop)
    return server, asked, load


def check(binary):
    prometheus = report.tool("prometheus")
    if not prometheus:
        report.skip("queries under load", "prometheus is not installed (Debian: prometheus)")
        return
    with contextlib.ExitStack() as stack:
        server, asked, load = scraped(stack, binary, prometheus)
        began = time.monotonic()
        data, understood = wanted()
        problems = wait_for_data(asked, data)
        took = time.monotonic() - began
        report.result("queries have data under load", problems, f"{len(data)} after {took:.0f} s")
        answers = [(where, asked.ask(expression)) for where, expression in understood]
        refused = [f"{where}: {answer}" for where, answer in answers if answer not in (None, "no data")]
        report.result("alerts and annotations are understood", refused, f"{len(understood)}")
        report.result("Prometheus evaluates every rule", rule_problems(asked))
        load.stop()
        statuses = {200, 400, 429}
        lacking = statuses - set(load.statuses)
        report.result(
            "the load was answered, refused and found wrong",
            [f"no {status}" for status in lacking],
            str(dict(sorted(load.statuses.items()))),
        )
        server.send_signal(signal.SIGTERM)
        report.result("the server stops when told", [] if server.wait(timeout=60) == 0 else ["not with 0"])
