"""What scripts/conformance runs: fetches, builds and runs the clients' own suites, and writes down what came of each test."""

import asyncio
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib

from kafka_cluster import Cluster
from kafka_tools import tools

HERE = pathlib.Path(__file__).parent
JOBS = int(os.environ.get("CONFORMANCE_JOBS", "2"))
#: Longest that one test may take, in seconds; and one without a broker, where most wait for one until they give up.
LIMIT, CONTROL_LIMIT, CONTROL_JOBS = 420, 60, 12
#: The scenario of tests that are written for a cluster of one.
ONE_BROKER = "one broker"
#: Nobody listens there.
NOBODY = "127.0.0.1:1"
CRATES = {"rdkafka": "0.39.0", "rdkafka-sys": "4.10.0", "rskafka": "0.6.0"}

#: Kafka looks for records that retention lets go every five minutes; the suites write records of long ago, and read them at once.
PATIENT = ["retention.check_interval_ms=300000"]

#: What came of a test. `state` is passed, failed or skipped (by the suite itself); `why` is the suite's word.
Result = collections.namedtuple("Result", "state why seconds", defaults=("", 0.0))


def run(*command, cwd=None, env=None):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"conformance: {' '.join(map(str, command))}:\n{done.stdout.decode(errors='replace')[-4000:]}")
    return done.stdout.decode(errors="replace")


def source_of(work, name):
    return work / f"{name}-{CRATES[name]}"


def fetch(work):
    """The crates' sources, as published, each in a folder of its own under `work`."""
    manifest = work / "fetch" / "Cargo.toml"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    (manifest.parent / "lib.rs").touch()
    wanted = "".join(f'{name} = "={version}"\n' for name, version in CRATES.items())
    manifest.write_text('[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[lib]\npath = "lib.rs"\n'
                        f"[workspace]\n[dependencies]\n{wanted}")
    run("cargo", "fetch", "--quiet", cwd=manifest.parent)
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version=1", "--quiet"], cwd=manifest.parent))
    for package in metadata["packages"]:
        name = package["name"]
        if name not in CRATES or source_of(work, name).exists():
            continue
        fresh = work / f"{name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(pathlib.Path(package["manifest_path"]).parent, fresh)
        # Neither part of this repository's workspace nor bound to one toolchain.
        with open(fresh / "Cargo.toml", "a") as file:
            file.write("\n[workspace]\n")
        (fresh / "rust-toolchain.toml").unlink(missing_ok=True)
        if name == "rskafka":  # the one that its lock file names does not compile any more
            run("cargo", "update", "--quiet", "--package", "rsasl", cwd=fresh)
        fresh.rename(source_of(work, name))


def guarded(command, cwd, env, log, limit):
    """Runs one test in a process group of its own. Its exit status, or None if it took too long, and its output."""
    began = time.time()
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = None
    text = re.sub(r"\x1b\[[0-9;]*m", "", pathlib.Path(log).read_bytes().decode(errors="replace"))
    return status, text, time.time() - began


class Librdkafka:
    """The tests within rdkafka-sys that need a broker; those that need none say nothing about one."""

    name, divided, first, kafka_port = "librdkafka", "0081_admin", 1, None
    #: Tests that create their topics with kafka-topics.sh. (Others would look for more of Kafka, if they knew where it is.)
    with_kafkas_tool = ["0045", "0052"]
    scenarios = {
        "default": ["auto.create.topics.enable=true", "num.partitions=4"],
        "noautocreate": ["auto.create.topics.enable=false", "num.partitions=4"],
    }

    def __init__(self, work):
        self.folder = source_of(work, "rdkafka-sys") / "librdkafka"
        self.kafka = work / "kafka"

    def build(self):
        if not (self.folder / "Makefile.config").exists():
            # What was not found on the machine is left out: none of it matters without security.
            run("./configure", "--disable-ssl", "--disable-curl", "--disable-gssapi", cwd=self.folder)
        run("make", f"-j{os.cpu_count()}", "libs", cwd=self.folder)
        run("make", f"-j{os.cpu_count()}", "-C", "tests", "build", cwd=self.folder)
        if shutil.which("java") and shutil.which("mvn"):
            script = self.kafka / "bin" / "kafka-topics.sh"
            script.parent.mkdir(parents=True, exist_ok=True)
            lib = tools(self.kafka.parent.parent).absolute()
            script.write_text(f'#!/bin/sh\nexec java -cp "{lib}/*" org.apache.kafka.tools.TopicCommand "$@"\n')
            script.chmod(0o755)

    def tests(self, scenario):
        source = (self.folder / "tests" / "test.c").read_text()
        table = source[source.index("struct test tests[] = {"):]
        table = table[:table.index("\n};")]
        found = []
        for entry in table.split("_TEST(")[1:]:
            name, _, rest = entry.partition(",")
            needs = re.search(r'\.scenario = "([^"]*)"', rest)
            local = re.search(r"TEST_F_(LOCAL|MANUAL)", rest)
            if not local and scenario in (needs.group(1) if needs else "default").split(","):
                found.append(name)
        return found

    def units(self, scenario, wanted):
        """Tests of one number run in one process; those of the admin client, which stop at the first that fails, each in its own."""
        numbers, found = collections.defaultdict(list), []
        for name in self.tests(scenario):
            if not wanted or name[:4] in wanted or any(word.startswith(name) for word in wanted):
                numbers[name[:4]].append(name)
        for number, names in numbers.items():
            subtests = self.subtests(names[0]) if names == [self.divided] else [None]
            for subtest in subtests:
                unit = names if subtest is None else [f"{names[0]}:{subtest}"]
                if subtest is None or not wanted or number in wanted or names[0] in wanted or unit[0] in wanted:
                    found.append((number if subtest is None else f"{number}-{subtest}", unit, number, subtest))
        return found

    def subtests(self, name):
        (source,) = (self.folder / "tests").glob(name.replace("_", "-", 1) + ".c")
        body = source.read_text().split("static void do_test_apis(")[1]
        return sorted(set(re.findall(r"\bdo_test_(\w+)\(", body[:body.index("\n}")])))

    def run(self, unit, bootstrap, scenario, log, limit):
        """In the suite's quick mode; in full where that leaves out everything there is."""
        found = self.run_once(unit, bootstrap, scenario, log, limit, ["-Q"])
        if any(result.state == "skipped" or result.seconds < 0.1 for result in found.values()):
            found = self.run_once(unit, bootstrap, scenario, log, limit, [])
        return found

    def run_once(self, unit, bootstrap, scenario, log, limit, mode):
        _, names, number, subtest = unit
        config, report = log.with_suffix(".conf"), log.with_suffix(".json")
        config.write_text(f"bootstrap.servers={bootstrap}\nbroker.address.family=v4\ntest.timeout.multiplier=2\n")
        report.unlink(missing_ok=True)
        env = {"TESTS": number, "RDKAFKA_TEST_CONF": str(config.absolute()), "LD_LIBRARY_PATH": "../src:../src-cpp",
               "TEST_REPORT": str(report.absolute())}
        if number in self.with_kafkas_tool:
            env |= {"KAFKA_PATH": str(self.kafka.absolute()), "BROKERS": bootstrap}
        if subtest:
            env["SUBTESTS"] = f"do_test_{subtest}:"
        # As a broker of 4.0: none of the message formats that Kafka itself has given up.
        command = ["./test-runner", "-p1", "-L", "-K", *mode, "-s", scenario, "-V", "4.0.0"]
        status, text, seconds = guarded(command, self.folder / "tests", env, log, limit)
        told = json.loads(report.read_text())["tests"] if report.exists() and report.stat().st_size else {}
        found = {}
        for name in names:
            state = told.get(name.partition(":")[0], {"state": "", "duration": seconds})
            if subtest and state["state"] == "PASSED" and f"[ do_test_{subtest}:" not in text and "unclean" not in subtest:
                state["state"] = "SKIPPED"
            found[name] = Result({"PASSED": "passed", "SKIPPED": "skipped", "DNS": "skipped"}.get(state["state"], "failed"), "",
                                 state["duration"])
            if found[name].state != "passed":
                found[name] = found[name]._replace(why=self.why(name.partition(":")[0], text, status, limit))
        return found

    @staticmethod
    def why(name, text, status, limit):
        """The suite's own words for what went wrong or was left out."""
        if status is None:
            return f"no end within {limit} s"
        failed = re.search(rf'^### Test "{name}\b[^\n]*\n([^\n]+)', text, re.M)
        skipped = re.search(rf"^\[{name}\b[^\n]*?\] (?:WARN: )?(?:SKIPPING TEST: |Skipping|Test skipped)([^\n]*)", text, re.M)
        found = failed or skipped
        return found.group(1).strip()[:200].replace("|", "/") if found else "the suite leaves it out"


class Crate:
    """Integration tests of a Rust crate, each a process of its own."""

    first = 0  # rdkafka's place replicas on broker 0

    def __init__(self, work, name, settings, features, env, kafka_port=None, for_one=()):
        self.kafka_port, self.for_one = kafka_port, for_one
        self.name, self.folder, self.target = name, source_of(work, name), work / "target"
        self.scenarios, self.features, self.env = {"default": settings}, features, env
        if for_one:
            self.scenarios[ONE_BROKER] = settings
        self.binaries, self.jars = [], threading.Lock()

    def build(self):
        command = ["cargo", "test", "--no-run", "--tests", "--message-format=json", *self.features]
        env = {**os.environ, "CARGO_TARGET_DIR": str(self.target.absolute()), "RUSTFLAGS": ""}
        done = subprocess.run(command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            sys.exit(f"conformance: {self.name} does not build:\n{done.stderr.decode()[-4000:]}")
        for line in done.stdout.decode().splitlines():
            message = json.loads(line)
            # The crate's unit tests need no broker.
            if message.get("executable") and message["target"]["kind"] == ["test"]:
                self.binaries.append((message["target"]["name"], message["executable"]))

    def units(self, scenario, wanted):
        found = []
        for binary, path in self.binaries:
            listed = subprocess.check_output([path, "--list", "--format=terse"], cwd=self.folder).decode()
            ignored = subprocess.check_output([path, "--list", "--format=terse", "--ignored"], cwd=self.folder).decode()
            for test in re.findall(r"^(.*): test$", listed, re.M):
                name = f"{binary}::{test}"
                if (name in self.for_one) == (scenario == ONE_BROKER) and (not wanted or name in wanted or test in wanted):
                    found.append((name, [name], path, test, test in re.findall(r"^(.*): test$", ignored, re.M)))
        return found

    def run(self, unit, bootstrap, _scenario, log, limit):
        name, _, path, test, ignored = unit
        if ignored:
            return {name: Result("skipped", "ignored by the suite")}
        env = {key: value.replace("BOOTSTRAP", bootstrap).replace("ONE", bootstrap.split(",")[0]) for key, value in self.env.items()}
        # Each test with Java puts its jars anew where another one's JVM may just be reading them. Without a broker none gets far, and
        # one after another they would take half an hour.
        with self.jars if "java" in test and bootstrap != NOBODY else contextlib.nullcontext():
            status, text, seconds = guarded([path, "--exact", test, "--nocapture", "--test-threads=1"], self.folder, env, log, limit)
        if status == 0 and "1 passed" in text:
            skipped = re.search(r"^.*[Ss]kipping.*$", text, re.M)
            return {name: Result("skipped", skipped.group().strip(), seconds) if skipped else Result("passed", "", seconds)}
        panicked = re.search(r"panicked at [^\n]*\n([^\n]*)", text)
        why = f"no end within {limit} s" if status is None else panicked.group(1) if panicked else f"exit status {status}"
        return {name: Result("failed", why.strip()[:200], seconds)}


class Socks5(threading.Thread):
    """As much of a SOCKS5 proxy (RFC 1928) as one of rskafka's tests needs: CONNECT without authentication, to loopback only."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bound = concurrent.futures.Future()
        self.start()
        self.address = "127.0.0.1:%d" % self.bound.result(10)

    def run(self):
        async def serve():
            server = await asyncio.start_server(self.connect, "127.0.0.1", 0)
            self.bound.set_result(server.sockets[0].getsockname()[1])
            await server.serve_forever()
        asyncio.run(serve())

    async def connect(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            _, methods = await reader.readexactly(2)
            await reader.readexactly(methods)
            writer.write(b"\x05\x00")
            _, _, _, kind = await reader.readexactly(4)
            host = await reader.readexactly(4 if kind == 1 else (await reader.readexactly(1))[0])
            host = ".".join(map(str, host)) if kind == 1 else host.decode()
            port = int.from_bytes(await reader.readexactly(2), "big")
            if host not in ("127.0.0.1", "localhost"):
                return writer.close()
            there = await asyncio.open_connection(host, port)
            writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
            await asyncio.gather(self.copy(reader, there[1]), self.copy(there[0], writer))

    @staticmethod
    async def copy(source, sink):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        sink.close()


def suites(work):
    rskafka = {"TEST_INTEGRATION": "1", "TEST_BROKER_IMPL": "kafka", "KAFKA_CONNECT": "BOOTSTRAP", "SOCKS5_PROXY": "PROXY"}
    if shutil.which("java"):
        rskafka["TEST_JAVA_INTEROPT"] = "1"
    return [
        Librdkafka(work),
        Crate(work, "rdkafka", ["auto.create.topics.enable=true", "num.partitions=3"], [], {"KAFKA_HOST": "BOOTSTRAP"},
              kafka_port=9092,  # some of them look nowhere else
              for_one=["test_metadata::test_metadata"]),
        Crate(work, "rskafka", ["auto.create.topics.enable=false"], ["--features", "transport-socks5"], rskafka),
    ]


def all_at_once(jobs, work, units):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        results = {}
        try:
            for done in concurrent.futures.as_completed([pool.submit(work, unit) for unit in units]):
                results.update(done.result())
        except BaseException:  # asked to stop: what has not begun never does
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return results


def run_suite(suite, binary, work, wanted, excused):
    """What came of each test, and which of those that passed pass without a broker too."""
    results, control = {}, set()
    for scenario, settings in suite.scenarios.items():
        units = []
        for unit in suite.units(scenario, wanted):
            if all(name in excused for name in unit[1]) and not wanted:
                results.update({name: Result("not applicable", excused[name]) for name in unit[1]})
            else:
                units.append(unit)
        if not units:
            continue
        logs = work / "logs" / suite.name
        logs.mkdir(parents=True, exist_ok=True)
        cluster = Cluster(binary, settings + PATIENT, first=suite.first, kafka_port=suite.kafka_port, count=1 if scenario == ONE_BROKER else 3)

        def one(unit):
            found = suite.run(unit, cluster.bootstrap, scenario, logs / f"{unit[0]}.log", LIMIT)
            for name, result in found.items():
                if name in excused and result.state != "passed":
                    found[name] = result = Result("not applicable", excused[name], result.seconds)
                print(f"{result.state:8} {suite.name} {name} ({result.seconds:.1f} s) {result.why}", flush=True)
            return found

        try:
            found = all_at_once(JOBS, one, units)
        except BaseException:
            cluster.close(keep=True)
            raise
        cluster.close(keep=any(result.state == "failed" for result in found.values()))
        results.update(found)
        passed = [unit for unit in units if any(found[name].state == "passed" for name in unit[1])]
        alone = lambda unit: suite.run(unit, NOBODY, scenario, logs / f"{unit[0]}.control", CONTROL_LIMIT)
        without = all_at_once(CONTROL_JOBS, alone, passed)
        control |= {name for name, result in without.items() if result.state == "passed" and found[name].state == "passed"}
    return results, control


def report(everything):
    lines = ["# The clients' own suites", "", "| suite | passed | of these also without a broker | failed | skipped by the suite | not applicable |",
             "|---|---|---|---|---|---|"]
    for name, (results, control) in everything.items():
        count = collections.Counter(result.state for result in results.values())
        lines.append(f"| {name} | {count['passed']} | {len(control)} | {count['failed']} | {count['skipped']} | {count['not applicable']} |")
    for name, (results, control) in everything.items():
        lines += ["", f"## {name}", "", "| test | | why |", "|---|---|---|"]
        lines += [f"| {test} | {result.state} | {result.why} |" for test, result in sorted(results.items()) if result.state != "passed"]
        lines += [f"| {test} | passed | without a broker too: it shows nothing |" for test in sorted(control)]
        passed = sorted(test for test, result in results.items() if result.state == "passed" and test not in control)
        lines += ["", f"Passed: {', '.join(passed)}."]
    return "\n".join(lines) + "\n"


def main():
    # So that what was started is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    binary, work, wanted = pathlib.Path(sys.argv[1]).absolute(), pathlib.Path(sys.argv[2]), sys.argv[3:]
    work.mkdir(parents=True, exist_ok=True)
    known = tomllib.loads((HERE / "conformance.toml").read_text())
    fetch(work)
    proxy, everything = Socks5(), {}
    for suite in suites(work):
        tests = {word.partition("/")[2] for word in wanted if word.partition("/")[0] == suite.name}
        if wanted and not tests:
            continue
        print(f"building {suite.name}", flush=True)
        suite.build()
        if isinstance(suite, Crate):
            suite.env = {key: value.replace("PROXY", proxy.address) for key, value in suite.env.items()}
        everything[suite.name] = run_suite(suite, binary, work, tests - {""}, known.get(suite.name, {}))
    (work / "RESULTS.md").write_text(report(everything))
    print(report(everything))
    failed = [f"{name}/{test}" for name, (results, _) in everything.items() for test, result in results.items() if result.state == "failed"]
    print(f"conformance: {'ok' if not failed else 'failed: ' + ' '.join(failed)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
