"""Some `pontoon serve` processes, three mostly, for the scripts that run Kafka's clients against them: kafka-smoke, conformance, bench-kafka."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PATIENCE = 60


def free_ports(count):
    """Below the range from which the kernel takes ports for outgoing connections; of each process elsewhere, for two may ask at once."""
    held, port = [], 11000 + (os.getpid() * 97 + int(time.time()) * 37) % 15000
    while len(held) < count:
        port += 1
        sock = socket.socket()
        try:
            sock.bind(("127.0.0.1", port))
            held.append((sock, port))
        except OSError:
            sock.close()
    for sock, _ in held:
        sock.close()
    return [port for _, port in held]


class Cluster:
    """So many brokers, numbered from `first` on, the first at `kafka_port`; `settings` are `key=value` of their configuration."""

    def __init__(self, binary, settings=(), folder=None, first=1, kafka_port=None, count=3):
        self.binary, self.settings, self.first, self.brokers = binary, settings, first, range(first, first + count)
        self.dir = tempfile.mkdtemp(prefix="pontoon-kafka-", dir=folder)
        ports = free_ports(3 * count)
        self.http, self.kafka, self.peer = ports[:count], ports[count:2 * count], ports[2 * count:]
        self.kafka[0] = kafka_port or self.kafka[0]
        self.running = {}
        try:
            for broker in self.brokers:
                self.start(broker)
            for broker in self.brokers:
                self.await_ready(broker)
        except BaseException:
            self.close(keep=True)
            raise

    def start(self, broker):
        at = broker - self.first
        bootstrap = ",".join(f"{n + self.first}@127.0.0.1:{port}" for n, port in enumerate(self.peer))
        log = open(f"{self.dir}/broker-{broker}.log", "ab")
        self.running[broker] = subprocess.Popen(
            [self.binary, "serve", "--broker-id", str(broker), "--data-dir", f"{self.dir}/data-{broker}",
             "--bootstrap", bootstrap, "--http-listen", f"127.0.0.1:{self.http[at]}",
             "--kafka-listen", f"127.0.0.1:{self.kafka[at]}", "--peer-listen", f"127.0.0.1:{self.peer[at]}",
             *(word for setting in self.settings for word in ("--set", setting))],
            stdout=log, stderr=log)

    def await_ready(self, broker):
        deadline = time.time() + PATIENCE
        while time.time() < deadline:
            try:
                self.ask(broker, "/readyz")
                return
            except (urllib.error.URLError, ConnectionError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"broker {broker} is not ready: {open(f'{self.dir}/broker-{broker}.log').read()[-2000:]}")

    def ask(self, broker, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http[broker - self.first]}{path}", data, method=method)
        request.add_header("content-type", "application/json")
        answer = urllib.request.urlopen(request, timeout=30).read()
        return json.loads(answer) if answer else None

    def kill(self, broker):
        process = self.running.pop(broker)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def leader(self, topic, partition):
        deadline = time.time() + PATIENCE
        while time.time() < deadline:
            broker = next(iter(self.running))
            found = self.ask(broker, f"/v1/topics/{topic}")["partitions"][partition]["leader"]
            if found in self.running:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{topic}/{partition} has no leader")

    @property
    def bootstrap(self):
        return ",".join(f"127.0.0.1:{port}" for port in self.kafka)

    def log_of(self, broker):
        with open(f"{self.dir}/broker-{broker}.log", errors="replace") as log:
            return log.read().splitlines()

    def panics(self):
        """What brokers' logs tell of panics: a task that panics may be dropped, and the rest of the broker go on. Not sled's, which are
        caught."""
        panics = lambda broker: [line for line in self.log_of(broker) if " panicked at " in line and "/sled-" not in line]
        return [f"broker {broker}: {line}" for broker in self.brokers for line in panics(broker)]

    def show_logs(self, lines=20):
        for broker in self.brokers:
            print(f"--- broker {broker}, its last {lines} lines", *self.log_of(broker)[-lines:], sep="\n", flush=True)

    def close(self, keep):
        for process in self.running.values():
            process.kill()
            process.wait()
        if keep:
            print(f"data and logs are kept in {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir)
