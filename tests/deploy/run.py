#!/usr/bin/env python3
"""Checks what is in deploy/ with the tools that will read it.

    run.py target/release/verdict

promtool reads and tests the rules; the dashboard, every rule and every query of the
autoscalers are asked of a real Prometheus that scrapes the real server under load; kubectl
renders the manifests and Kubernetes' own schemas check them; the Compose file is held to its
specification; Envoy runs before two servers as deploy/scale-out says. Prints a line for each check and exits with 1 if any failed. What a missing
tool would check is skipped, and named: requirements.txt and package.json have those of Python
and node, `prometheus` is Debian's package of that name.
"""

import sys

import report

try:
    import yaml  # noqa: F401
except ModuleNotFoundError:
    report.skip("everything", "python3 has no PyYAML (tests/deploy/requirements.txt)")
    sys.exit(0)

import compose
import image
import live
import manifests
import monitoring
import scale_out


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for check in (monitoring.check, manifests.check, compose.check, image.check):
        check()
    compose.check_load(sys.argv[1])
    live.check(sys.argv[1])
    scale_out.check(sys.argv[1])
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
