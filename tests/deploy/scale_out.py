"""deploy/scale-out: a real Envoy in front of two real servers.

The hash keeps a query on one server, whose prefix cache then has it; a hot query spills over; a
server that refuses is left for the other; one that drains loses nothing; retries are bounded.
All of it on the loopback address, with a bounded number of requests.
"""

import collections
import contextlib
import http.client
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import live
import report
import yaml

FOLDER = report.DEPLOY / "scale-out"
FLAGS = (
    "--host 127.0.0.1 --port 0 --admin-port 0 --log-format json --threads 1 "
    "--queue-pairs 64 --max-documents 48 --explain-kv-mib 64 --prefix-cache-mib 64"
).split()
TOPICS = [
    "how to reset a water heater by hand when the pilot light goes out at night",
    "quiet mechanical keyboard for an open office with brown switches and no numbers",
    "symptoms of a migraine with aura that begins behind the left eye in the morning",
    "cheap flights to lisbon in march with one bag and a stop of less than two hours",
    "waterproof hiking boots for wide feet that last more than two winters of mud",
    "how does a heat pump warm a house when it is far below freezing outside at noon",
    "best order to learn the chords of a twelve string guitar after the six string one",
    "rust borrow checker error for a value that is moved in the previous iteration",
]
# Enough of them that both servers have some, wherever the ring puts the ports.
QUERIES = [f"{start} {topic}" for start in ("first", "second") for topic in TOPICS]
DRAIN_CLIENTS, DRAIN_REQUESTS = 12, 120
SERVER = "x-verdict-server"


class Proxy:
    """Asks through Envoy."""

    def __init__(self, port, admin):
        self.port, self.admin = port, admin

    def score(self, query, documents, path="/score"):
        """Status, headers and body of one request on a connection of its own."""
        return ask(self.port, {"query": query, "documents": documents}, path)

    def stat(self, name):
        url = f"http://127.0.0.1:{self.admin}/stats?filter=^cluster.verdict.{name}$"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.read().decode().rsplit(":", 1)[1])

    def healthy(self):
        return self.stat("membership_healthy")


def ask(port, body, path="/score"):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        headers, content = {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        # What Envoy says itself is no JSON.
        if "json" in headers.get("content-type", ""):
            return answer.status, headers, json.loads(content)
        return f"{answer.status} {content.decode()}", headers, {}


def configuration(port, admin, servers):
    """The file as it is, on other ports."""
    config = yaml.safe_load((FOLDER / "envoy.yaml").read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    config["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = port
    endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    for endpoint, address in zip(endpoints, servers, strict=True):
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = int(address.split(":")[1])
    return json.dumps(config)


def wait(condition, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if condition():
                return True
        time.sleep(0.05)
    return False


def hash_problems(proxy):
    """Each query asked five times, with documents that are new each time."""
    homes = {}
    for query in QUERIES:
        seen, cached = set(), []
        for turn in range(5):
            status, headers, body = proxy.score(query, [f"document {turn} of {len(seen)} says so", "another"])
            if status != 200:
                yield f"{query!r}: {status} {body}"
                return
            seen.add(headers[SERVER])
            cached.append(body["usage"]["cached_tokens"])
        if len(seen) != 1:
            yield f"{query!r} went to {sorted(seen)}"
        # The first time the system text at most is known, later the query is as well.
        if not all(later > cached[0] for later in cached[1:]):
            yield f"{query!r}: tokens from the prefix cache, in turn: {cached}"
        homes[query] = seen.pop()
    if len(set(homes.values())) != 2:
        yield f"all queries went to {set(homes.values())}"


def dialect_problems(proxy):
    """The key is read from other dialects' bodies as well, and a body without one is still answered."""
    for query in QUERIES[:3]:
        home = proxy.score(query, ["a"])[1][SERVER]
        status, headers, body = ask(proxy.port, {"texts": ["a", "b"], "query": query}, "/rerank")
        if (status, headers.get(SERVER)) != (200, home):
            yield f"/rerank: {status} from {headers.get(SERVER)}, not {home}: {body}"
    pairs = {"pairs": [{"document": "a", "query": QUERIES[0]}]}
    if (status := ask(proxy.port, pairs)[0]) != 200:
        yield f"pairs: {status}"


def hot_problems(proxy):
    """One query from many clients at once is more than one server's share."""
    servers = collections.Counter()

    def client(number):
        for turn in range(6):
            documents = [f"document {number} {turn} {word} " * 8 for word in range(8)]
            status, headers, _ = proxy.score(QUERIES[0], documents)
            servers[(status, headers.get(SERVER))] += 1

    together(client, 8)
    if {status for status, _ in servers} != {200} or len(servers) != 2:
        yield f"answers by status and server: {dict(servers)}"


def together(client, count):
    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)


@contextlib.contextmanager
def filled(ports):
    """Servers kept full from elsewhere, past Envoy, until the block ends."""
    over = threading.Event()
    refused = collections.Counter()

    def client(port, number):
        for turn in range(2000):
            if over.is_set():
                return
            documents = [f"{word} {turn} of {number} fills the queue of this server " * 12 for word in range(31)]
            refused[port] += ask(port, {"query": f"fill {number}", "documents": documents})[0] == 429

    threads = [
        threading.Thread(target=client, args=(port, number), daemon=True) for port in ports for number in range(5)
    ]
    for thread in threads:
        thread.start()
    try:
        # Five clients of 31 pairs and a queue of 64: some are refused at once.
        if not wait(lambda: all(refused[port] for port in ports)):
            raise SystemExit("the servers could not be filled")
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=120)


def overload_problems(proxy, full, port):
    """Queries whose server is full are answered by the other."""
    at_home = [query for query in QUERIES if proxy.score(query, ["a"])[1][SERVER] == full]
    before = proxy.stat("upstream_rq_retry")
    servers = collections.Counter()
    with filled([port]):
        for turn in range(20):
            documents = [f"document {turn} {word}" for word in range(40)]
            status, headers, _ = proxy.score(at_home[turn % len(at_home)], documents)
            servers[(status, headers.get(SERVER) == full)] += 1
    if {status for status, _ in servers} != {200} or not servers[(200, False)]:
        yield f"answers by status and whether at home: {dict(servers)}"
    if proxy.stat("upstream_rq_retry") == before:
        yield "nothing was retried"


def budget_problems(proxy, ports):
    """With both full, a refusal reaches the client, and a request is tried twice at most."""
    before = proxy.stat("upstream_rq_retry")
    statuses, lacking = collections.Counter(), []

    def client(number):
        for turn in range(5):
            status, headers, _ = proxy.score(f"{QUERIES[number]} {turn}", [f"{word} b" for word in range(40)])
            statuses[status] += 1
            if status == 429 and "retry-after" not in headers:
                lacking.append(headers)

    with filled(ports):
        together(client, 8)
    retries = proxy.stat("upstream_rq_retry") - before
    if set(statuses) - {200, 429} or not statuses[429] or lacking:
        yield f"statuses: {dict(statuses)}, without Retry-After: {len(lacking)}"
    if not 0 < retries <= 40:
        yield f"{retries} retries of 40 requests"


def drain_problems(proxy, leaving, server):
    """SIGTERM to one server under load: every request is answered, by the other in the end."""
    outcomes = collections.Counter()
    half = threading.Event()

    def client(number):
        for turn in range(DRAIN_REQUESTS):
            if turn == DRAIN_REQUESTS // 2:
                half.set()
            query = QUERIES[(number + turn) % len(QUERIES)]
            try:
                status, headers, _ = proxy.score(query, [f"document {turn} {number}", "another one"])
            except (OSError, http.client.HTTPException) as error:
                status, headers = repr(error), {}
            outcomes[(status, headers.get(SERVER))] += 1

    def leave():
        half.wait(timeout=60)
        server.send_signal(signal.SIGTERM)

    leaver = threading.Thread(target=leave, daemon=True)
    leaver.start()
    together(client, DRAIN_CLIENTS)
    leaver.join(timeout=60)
    if {status for status, _ in outcomes} != {200} or sum(outcomes.values()) != DRAIN_CLIENTS * DRAIN_REQUESTS:
        yield f"outcomes by status and server: {dict(outcomes)}"
    if not outcomes[(200, leaving)]:
        yield "the leaving server had no request before"
    if server.wait(timeout=60) != 0:
        yield "it did not end with 0"
    if not wait(lambda: proxy.healthy() == 1):
        yield "the proxy still counts it as healthy"


def grpc_problems(proxy):
    """Metadata is the key of gRPC; the message is written by hand: query 1, documents 2 (text 2)."""
    import grpc

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    with grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
        score = channel.unary_unary("/relevance.v1.RelevanceService/Score", lambda body: body, lambda body: body)
        homes = {}
        for query in QUERIES:
            message = field(1, query.encode()) + field(2, field(2, b"a document"))
            key, seen = query.replace(" ", "-"), set()
            for _ in range(3):
                answer, call = score.with_call(message, metadata=[("x-verdict-query", key)], timeout=30)
                seen.add(dict(call.initial_metadata())[SERVER])
                if not answer:
                    yield "an empty answer"
            if len(seen) != 1:
                yield f"{query!r} went to {sorted(seen)}"
            homes[query] = seen.pop()
        if len(set(homes.values())) != 2:
            yield f"all went to {set(homes.values())}"


def documented_problems(envoy, folder):
    """docs/scaling.md: its endpoints of two zones, in the example's place, and the simulation's table."""
    text = (report.ROOT / "docs/scaling.md").read_text()
    config = yaml.safe_load((FOLDER / "envoy.yaml").read_text())
    endpoints = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    config["static_resources"]["clusters"][0]["load_assignment"].update(endpoints)
    (folder / "zones.json").write_text(json.dumps(config))
    yield from report.command(envoy, "--mode", "validate", "--log-level", "error", "-c", folder / "zones.json")[1]
    table, problems = report.command(sys.executable, FOLDER / "simulate.py")
    yield from problems
    if table not in text:
        yield "the table of docs/scaling.md is not what simulate.py prints"


def check(binary):
    envoy = report.tool("envoy")
    if not envoy:
        report.skip("scale-out: Envoy before two servers", "envoy is not installed (tests/deploy/requirements.txt)")
        return
    for file in sorted(FOLDER.glob("*.yaml")):
        said = report.command(envoy, "--mode", "validate", "--log-level", "error", "-c", file)[1]
        report.result(f"envoy reads scale-out/{file.name}", said)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        report.result("scale-out: zones and simulation as documented", documented_problems(envoy, folder))
        starts = [
            stack.enter_context(live.running([binary, "serve", *FLAGS], stderr=subprocess.PIPE)) for _ in range(2)
        ]
        servers = [live.addresses(server)[0] for server in starts]
        ports = [int(address.split(":")[1]) for address in servers]
        port, admin = live.free_port(), live.free_port()
        (folder / "envoy.json").write_text(configuration(port, admin, servers))
        words = [envoy, "-c", folder / "envoy.json", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]
        log = stack.enter_context((folder / "envoy.log").open("w+"))
        stack.enter_context(live.running(words, stderr=log))
        proxy = Proxy(port, admin)
        if not wait(lambda: proxy.healthy() == 2):
            raise SystemExit("Envoy does not find both servers")
        said = "scale-out: "
        report.result(said + "a query stays on one server, whose prefix cache has it", hash_problems(proxy))
        report.result(said + "the key is read from other bodies", dialect_problems(proxy))
        try:
            report.result(said + "gRPC by its metadata", grpc_problems(proxy))
        except ModuleNotFoundError:
            report.skip(said + "gRPC", "python3 has no grpcio (tests/deploy/requirements.txt)")
        report.result(said + "a hot query spills over", hot_problems(proxy))
        report.result(said + "a full server is left for the other", overload_problems(proxy, servers[0], ports[0]))
        report.result(said + "with both full the refusal is passed on", budget_problems(proxy, ports))
        report.result(
            said + "a server drains under load and nothing is lost",
            drain_problems(proxy, servers[0], starts[0]),
            f"{DRAIN_CLIENTS * DRAIN_REQUESTS} requests",
        )
        report.result(said + "Envoy has no error to tell", (folder / "envoy.log").read_text().splitlines()[:5])
