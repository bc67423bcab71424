"""A thousand hostile requests against the service: python -m tests.benchmarks.serve_abuse [-n 1000] [--clients 8].

Prints what was answered how often, whether good requests were still answered, the files left, and the growth of memory.
"""

import argparse
import itertools
import resource
import socket
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.service.test_server import HOSTILE, Service, nifti


def hold(service):
    """A client that begins and says no more."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=300) as client:
        client.sendall(b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n"
                       b"Content-Type: multipart/form-data; boundary=b0undary\r\n\r\n--b0")  # fmt: skip
        return client.recv(100).split(b" ", 2)[1].decode()


def attack(service, what):
    if what == "slow":
        return hold(service)
    status, answer = service.send(HOSTILE[what], filename="../" * 9 + "etc/x")
    if status == 202:
        state = service.finished(answer["id"])["state"]
        service.ask("DELETE", f"/jobs/{answer['id']}")
        return state
    return str(status)


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), waiting=4)
        try:
            for what in HOSTILE:  # once each, so that what follows shows growth alone
                attack(service, what)
            before = megabytes()
            kinds = itertools.islice(itertools.cycle([*HOSTILE, "slow"]), options.n)
            with ThreadPoolExecutor(options.clients) as pool:
                answers = Counter(pool.map(lambda what: attack(service, what), kinds))
            status, job = service.send(nifti())
            good = service.finished(job["id"])["state"] if status == 202 else status
            service.ask("DELETE", f"/jobs/{job['id']}")
            left = len(list(service.folder.rglob("*")))
            print(f"answers: {dict(sorted(answers.items()))}")
            print(
                f"a good request afterwards: {good}; files left: {left}; memory grew by {megabytes() - before:.0f} MB"
            )
        finally:
            service.close()


if __name__ == "__main__":
    main()
