#!/usr/bin/env python3
"""Sends requests at random times, each on its own, and says how they were answered.

    load.py http://127.0.0.1:8080 --rate 5 --seconds 600

For a laptop's dashboard to have something to show; it measures nothing that is worth quoting. Open
loop: a request is sent when its time has come, whether others were answered or not, up to 64 at once.
Queries are few and of falling popularity, documents come from their words and others; one request in
ten asks for reasons. Needs nothing but Python.
"""

import argparse
import collections
import concurrent.futures
import json
import random
import time
import urllib.error
import urllib.request

AT_ONCE = 64
QUERIES = [
    "waterproof hiking boots",
    "how long to boil eggs",
    "capital of australia",
    "reset a commit in git",
    "quiet mechanical keyboard",
    "migraine with aura",
    "heat pump in winter",
    "flights to lisbon",
]
WORDS = (
    "leather sole soft yolk minutes canberra sydney city branch history switches office light pain cold house "
    "march bag stop wool water garden lamp train recipe market river stone price review"
).split()


def body(chance):
    rank = min(int(chance.paretovariate(1.0)) - 1, len(QUERIES) - 1)
    query = QUERIES[rank]
    documents = [
        " ".join(chance.choices(WORDS + query.split() * chance.choice([0, 0, 5]), k=chance.randint(15, 60)))
        for _ in range(chance.randint(1, 12))
    ]
    return {"query": query, "documents": documents}, chance.random() < 0.1


def ask(root, asked, reasons):
    headers = {"content-type": "application/json", "accept": "application/json"}
    path = "/score?explain=true" if reasons else "/score"
    request = urllib.request.Request(root + path, json.dumps(asked).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return type(error).__name__


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", metavar="URL")
    parser.add_argument("--rate", type=float, default=5, help="requests a second, on average")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    start, due, sent = time.monotonic(), 0.0, []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as clients:
        while (due := due + chance.expovariate(arguments.rate)) < arguments.seconds:
            time.sleep(max(0, start + due - time.monotonic()))
            sent.append(clients.submit(ask, arguments.root, *body(chance)))
    statuses = collections.Counter(str(one.result()) for one in sent)
    print(json.dumps({"requests": len(sent), "statuses": dict(statuses)}))


if __name__ == "__main__":
    main()
