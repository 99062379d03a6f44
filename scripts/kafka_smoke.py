"""What scripts/kafka-smoke runs: scenarios by real Kafka clients against three `pontoon serve` processes."""

import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic,
                                   OffsetSpec)
from kafka_cluster import PATIENCE, Cluster

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
ACKS = ["0", "1", "all"]
NOW = 0  # librdkafka's word for the time of sending


def equal(found, expected, what):
    assert found == expected, f"{what}: {found!r} is not {expected!r}"


def produce(cluster, topic, records, **config):
    """Produces (partition, key, value, headers, timestamp) and returns the offsets, in the order of the records."""
    offsets, failed = {}, []

    def delivered(number):
        def done(error, message):
            if error:
                failed.append(str(error))
            else:
                offsets[number] = message.offset()
        return done

    producer = Producer({"bootstrap.servers": cluster.bootstrap, **config})
    for number, (partition, key, value, headers, timestamp) in enumerate(records):
        while True:
            try:
                producer.produce(topic, partition=partition, key=key, value=value, headers=headers,
                                 timestamp=timestamp, on_delivery=delivered(number))
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    equal(producer.flush(PATIENCE), 0, "records left")
    equal(failed, [], "delivery reports")
    return [offsets[number] for number in range(len(records))]


def consume(cluster, topic, partitions, **config):
    """All records of these partitions, by assignment, each as the client shows it."""
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": "unused", "enable.auto.commit": False,
                         "enable.partition.eof": True, "auto.offset.reset": "error", "check.crcs": True, **config})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    found, ended, deadline = [], set(), time.time() + PATIENCE
    while ended != set(partitions):
        assert time.time() < deadline, f"{len(found)} records after {PATIENCE} s; ended: {ended}"
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error() is None:
            found.append(message)
        elif message.error().code() == KafkaError._PARTITION_EOF:
            ended.add(message.partition())
        else:
            raise KafkaException(message.error())
    consumer.close()
    return found


def create(cluster, topic):
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    # Some of the records are years old by their timestamps: retention would take them.
    client.create_topics([NewTopic(topic, 1, 3, config={"retention.ms": "-1"})])[topic].result(PATIENCE)


def admin(cluster):
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    done = lambda futures: [future.result(PATIENCE) for future in futures.values()]
    done(client.create_topics([NewTopic("admin", 2, 3, config={"retention.ms": "86400000"})]))
    try:
        done(client.create_topics([NewTopic("admin", 2, 3)]))
        raise AssertionError("created twice")
    except KafkaException as error:
        equal(error.args[0].code(), KafkaError.TOPIC_ALREADY_EXISTS, "second creation")
    done(client.create_partitions([NewPartitions("admin", 3)]))
    metadata = client.list_topics("admin", timeout=PATIENCE)
    equal(len(metadata.topics["admin"].partitions), 3, "partitions")
    equal(sorted(metadata.brokers), [1, 2, 3], "brokers")
    (config,) = done(client.describe_configs([ConfigResource("topic", "admin")]))
    equal(config["retention.ms"].value, "86400000", "retention.ms")
    change = ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET)
    done(client.incremental_alter_configs([ConfigResource("topic", "admin", incremental_configs=[change])]))
    wait("the new retention", lambda: done(client.describe_configs([ConfigResource("topic", "admin")]))[0]["retention.ms"].value == "-1")
    produce(cluster, "admin", [(0, None, str(number), None, NOW) for number in range(5)])
    (deleted,) = done(client.delete_records([TopicPartition("admin", 0, 3)]))
    equal(deleted.low_watermark, 3, "the low watermark")
    kept = consume(cluster, "admin", [0], **{"auto.offset.reset": "earliest"})
    equal([(message.offset(), message.value()) for message in kept], [(3, b"3"), (4, b"4")], "what is kept")
    wait("the new topic in everybody's list", lambda: "admin" in client.list_topics(timeout=PATIENCE).topics)
    # Another client: this one would create it again by asking for what it knows.
    done(client.delete_topics(["admin"]))
    del client
    fresh = lambda: AdminClient({"bootstrap.servers": cluster.bootstrap})
    wait("the topic's end", lambda: "admin" not in fresh().list_topics(timeout=PATIENCE).topics)


def codecs(cluster):
    """Each codec with each ack level: offsets are dense, and everything comes back as it went."""
    create(cluster, "codecs")
    expected = []
    for codec in CODECS:
        for acks in ACKS:
            records = [(0, f"{codec}-{number}", f"{number} {acks} " * 20,
                        [("twice", b"1"), ("twice", b"2"), ("null", None)], 1_600_000_000_000 + len(expected) + number)
                       for number in range(50)]
            offsets = produce(cluster, "codecs", records, **{"compression.type": codec, "acks": acks, "linger.ms": 5})
            if acks != "0":
                equal(offsets, list(range(len(expected), len(expected) + 50)), f"offsets of {codec} with acks={acks}")
            expected += records
    produce(cluster, "codecs", [(0, "tombstone", None, None, 1_600_000_001_000)])
    found = consume(cluster, "codecs", [0])
    equal([message.offset() for message in found], list(range(len(expected) + 1)), "offsets")
    for message, (_, key, value, headers, timestamp) in zip(found, expected):
        shown = (message.key().decode(), message.value().decode(), message.headers(), message.timestamp()[1])
        equal(shown, (key, value, headers, timestamp), f"the record at {message.offset()}")
    equal(found[-1].value(), None, "the tombstone's value")


def times(cluster):
    """Seeking by time finds the first record at or after it; latest and earliest are what they say."""
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": "unused"})
    at = lambda ms: consumer.offsets_for_times([TopicPartition("codecs", 0, ms)], timeout=PATIENCE)[0].offset
    equal([at(1_600_000_000_000), at(1_600_000_000_123), at(1_600_000_000_749)], [0, 123, 749], "offsets by time")
    equal(at(1_700_000_000_000), -1, "a time after the end")
    consumer.assign([TopicPartition("codecs", 0, at(1_600_000_000_500))])
    message = consumer.poll(PATIENCE)
    equal((message.error(), message.offset(), message.timestamp()[1]), (None, 500, 1_600_000_000_500), "what is read from a time on")
    equal(consumer.get_watermark_offsets(TopicPartition("codecs", 0), timeout=PATIENCE), (0, 751), "watermarks")
    consumer.close()
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    found = client.list_offsets({TopicPartition("codecs", 0): OffsetSpec.max_timestamp()})
    (result,) = [future.result(PATIENCE) for future in found.values()]
    equal((result.offset, result.timestamp), (750, 1_600_000_001_000), "the largest timestamp")


def recompressed(cluster):
    """A topic that has a compression of its own keeps everything by it, whatever it came by, and it is read as it went."""
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    for kept in ("uncompressed", *CODECS[1:]):
        topic, sent = f"kept-by-{kept}", []
        client.create_topics([NewTopic(topic, 1, 3, config={"compression.type": kept, "retention.ms": "-1"})])[topic].result(PATIENCE)
        for codec in CODECS:
            records = [(0, codec, f"{number} " * 50, [("twice", b"1"), ("twice", None)], 1_600_000_000_000 + number)
                       for number in range(50)]
            offsets = produce(cluster, topic, records, **{"compression.type": codec, "enable.idempotence": True, "linger.ms": 5})
            equal(offsets, list(range(len(sent), len(sent) + 50)), f"offsets in {topic}")
            sent += records
        found = [(0, message.key().decode(), message.value().decode(), message.headers(), message.timestamp()[1])
                 for message in consume(cluster, topic, [0])]
        equal(found, sent, f"records of {topic}")


def leader_kill(cluster):
    """An idempotent producer loses nothing and doubles nothing while its leader is killed, twice."""
    create(cluster, "exact")
    failed, acknowledged = [], {}

    def done(error, message):
        if error:
            failed.append(str(error))
        else:
            acknowledged[message.value().decode()] = message.offset()

    producer = Producer({"bootstrap.servers": cluster.bootstrap, "enable.idempotence": True, "linger.ms": 1,
                         "delivery.timeout.ms": 60_000})
    killed = None
    for number in range(6000):
        producer.produce("exact", partition=0, value=str(number), on_delivery=done)
        producer.poll(0)
        if number in (1500, 4000):
            if killed:
                cluster.start(killed)
                cluster.await_ready(killed)
            producer.poll(0.05)
            killed = cluster.leader("exact", 0)
            cluster.kill(killed)
        if number % 50 == 0:
            time.sleep(0.005)
    equal(producer.flush(PATIENCE), 0, "records left")
    equal(failed, [], "delivery reports")
    cluster.start(killed)
    cluster.await_ready(killed)
    values = [message.value().decode() for message in consume(cluster, "exact", [0])]
    equal(values, [str(number) for number in range(6000)], "every record once, in order")
    equal([acknowledged[value] for value in values], list(range(6000)), "acknowledged offsets")


def crossing(cluster):
    """What HTTP wrote a Kafka client reads, and the other way round."""
    cluster.ask(1, "/v1/topics", {"name": "crossing", "config": {"retention.ms": "-1"}})
    sent = {"records": [{"key": "k", "value": "v", "headers": [["h", "1"], ["h", None], ["g", "2"]], "timestamp": 77},
                        {"key_base64": base64.b64encode(b"\xff\x00").decode(), "value": None, "timestamp": 78}]}
    answer = cluster.ask(2, "/v1/topics/crossing/partitions/0/records", sent)
    equal(answer["base_offset"], 0, "HTTP's offset")
    produce(cluster, "crossing", [(0, "from-kafka", b"\xfe", [("a", b"x"), ("a", b"y")], 79)], **{"compression.type": "lz4"})
    first, second, third = consume(cluster, "crossing", [0])
    equal((first.key(), first.value(), first.headers(), first.timestamp()[1]),
          (b"k", b"v", [("h", b"1"), ("h", None), ("g", b"2")], 77), "the first record")
    equal((second.key(), second.value(), third.key()), (b"\xff\x00", None, b"from-kafka"), "the others")
    read = cluster.ask(3, "/v1/topics/crossing/partitions/0/records?offset=2")["records"][0]
    equal((read["key"], read["value_base64"], read["timestamp"]), ("from-kafka", "/g==", 79), "HTTP's view")
    equal(read["headers"], [["a", "x"], ["a", "y"]], "HTTP's view of headers")


def auto_create(cluster):
    produce(cluster, "made-by-asking", [(number % 4, None, str(number), None, NOW) for number in range(8)])
    equal(len(consume(cluster, "made-by-asking", [0, 1, 2, 3])), 8, "records")


class Skipped(Exception):
    """The machine lacks what a scenario needs."""


def need(*tools):
    for tool in tools:
        if not shutil.which(tool):
            raise Skipped(f"{tool} is not installed")


def converse(cluster, *command, cwd=None):
    """Runs another language's client and does what it asks for in lines that begin with "@"."""
    log = tempfile.TemporaryFile()
    process = subprocess.Popen(command, cwd=cwd, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    late = threading.Timer(5 * PATIENCE, process.kill)
    late.start()
    said, killed = [], []
    for line in process.stdout:
        said.append(line)
        match line.split():
            case ["@kill-leader", topic, partition]:
                killed.append(cluster.leader(topic, int(partition)))
                cluster.kill(killed[-1])
            case ["@kill-coordinator", group]:
                killed.append(describe(cluster, group).coordinator.id)
                cluster.kill(killed[-1])
            case ["@restart"]:
                while killed:
                    cluster.start(killed[-1])
                    cluster.await_ready(killed.pop())
            case _:
                continue
        process.stdin.write("done\n")
        process.stdin.flush()
    status = process.wait()
    late.cancel()
    for broker in killed:  # whatever went wrong, the next scenario has three
        cluster.start(broker)
        cluster.await_ready(broker)
    log.seek(0)
    assert status == 0, f"exit status {status}\n" + ("".join(said) + log.read().decode())[-3000:]


def aiokafka(cluster):
    converse(cluster, sys.executable, str(pathlib.Path(__file__).parent / "kafka_clients" / "smoke_aio.py"), cluster.bootstrap)


def kcat(cluster):
    need("kcat")
    run = lambda *args, **more: subprocess.run(["kcat", "-b", cluster.bootstrap, *args], check=True, timeout=PATIENCE,
                                               capture_output=True, **more).stdout.decode()
    for codec in CODECS:
        lines = "".join(f"{number}:{codec} {number}\n" for number in range(100))
        run("-P", "-t", f"kcat-{codec}", "-p", "0", "-K:", "-z", codec, input=lines.encode())
        equal(run("-C", "-t", f"kcat-{codec}", "-p", "0", "-e", "-q", "-K:", "-o", "beginning"), lines, f"{codec}'s lines")
        equal(run("-C", "-t", f"kcat-{codec}", "-p", "0", "-e", "-q", "-o", "-3"), f"{codec} 97\n{codec} 98\n{codec} 99\n",
              f"{codec}'s last three")
    create(cluster, "codecs-kcat")
    times = [1_600_000_000_000 + 1000 * number for number in range(5)]
    produce(cluster, "codecs-kcat", [(0, None, str(number), None, at) for number, at in enumerate(times)])
    equal(run("-Q", "-t", f"codecs-kcat:0:{times[3] - 1}").split(), ["codecs-kcat", "[0]", "offset", "3"], "the offset at a time")
    equal(run("-C", "-t", "codecs-kcat", "-p", "0", "-e", "-q", "-o", f"s@{times[2]}", "-o", f"e@{times[4]}"), "2\n3\n", "seconds 2 to 4")
    # A group of its own: everything once, then only what is new.
    member = ("-q", "-X", "auto.offset.reset=earliest", "-e", "-G", "kcat", "kcat-none")
    equal(len(run(*member).splitlines()), 100, "records of the group")
    run("-P", "-t", "kcat-none", "-p", "0", input=b"new\n")
    equal(run(*member), "new\n", "what is new to the group")
    brokers = json.loads(run("-L", "-J"))["brokers"]
    equal(sorted(broker["id"] for broker in brokers), [1, 2, 3], "brokers")


def client_folder(name):
    """Where another language's client is fetched to."""
    folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"), "kafka-clients", name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, pathlib.Path(__file__).parent / "kafka_clients"


def fetch(folder, made, manifest, *command):
    """Fetches a client from its registry, unless what is there is what the manifest asks for. A registry that does not answer is no
    fault of the broker's."""
    mark, text = folder / f"{made}.fetched", (folder / manifest).read_text()
    if (folder / made).exists() and mark.exists() and mark.read_text() == text:
        return
    shutil.rmtree(folder / made, ignore_errors=True)
    mark.unlink(missing_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise Skipped(f"{command[0]} did not fetch the client within 300 s") from None
    if done.returncode:
        raise Skipped(f"{command[0]} did not fetch the client: {(done.stdout + done.stderr).decode()[-500:]}")
    mark.write_text(text)


def kafkajs(cluster):
    need("npm", "node")
    folder, source = client_folder("kafkajs")
    for name in ("package.json", "smoke.js"):
        shutil.copy(source / name, folder)
    fetch(folder, "node_modules", "package.json", "npm", "install", "--silent", "--no-audit", "--no-fund")
    converse(cluster, "node", "smoke.js", cluster.bootstrap, cwd=folder)


def java(cluster):
    need("mvn", "java")
    folder, source = client_folder("java")
    for name in ("pom.xml", "Smoke.java"):
        shutil.copy(source / name, folder)
    fetch(folder, "lib", "pom.xml", "mvn", "-q", "dependency:copy-dependencies", "-DoutputDirectory=lib")
    converse(cluster, "java", "-cp", "lib/*", "Smoke.java", cluster.bootstrap, cwd=folder)


def franz_go(cluster):
    need("go")
    folder, source = client_folder("go")
    for name in ("go.mod", "go.sum", "smoke.go"):
        shutil.copy(source / "go" / name, folder)
    # What is on the machine, and no other toolchain.
    fetch(folder, "vendor", "go.mod", "env", "GOTOOLCHAIN=local", "go", "mod", "vendor")
    subprocess.run(["go", "build", "-o", "smoke", "."], cwd=folder, check=True)
    converse(cluster, "./smoke", cluster.bootstrap, cwd=folder)


class Reader(threading.Thread):
    """A consumer of a group, in a thread: polls until told to stop, commits as it goes."""

    def __init__(self, cluster, group, **config):
        super().__init__(daemon=True)
        self.consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": group,
                                  "auto.offset.reset": "earliest", "enable.auto.commit": False,
                                  "session.timeout.ms": 6000, "heartbeat.interval.ms": 500, **config})
        self.assigned, self.found, self.stopping, self.failed = set(), [], False, None
        # How often it was given partitions, or has lost some.
        self.rebalances = 0
        self.consumer.subscribe(["shared"], on_assign=self.rebalanced, on_revoke=self.rebalanced)
        self.to_commit = threading.Event()
        self.start()

    def run(self):
        try:
            while not self.stopping:
                message = self.consumer.poll(0.1)
                self.assigned = {partition.partition for partition in self.consumer.assignment()}
                if self.to_commit.is_set():
                    self.commit()
                    self.to_commit.clear()
                if message is None:
                    continue
                if message.error():
                    # The rest librdkafka tells and goes on by itself, as after its coordinator has moved.
                    if message.error().fatal():
                        raise KafkaException(message.error())
                    continue
                self.found.append((message.partition(), message.offset(), message.value().decode()))
                if len(self.found) % 50 == 0:
                    self.commit()
            self.commit()
            self.consumer.close()
        except Exception as error:
            self.failed = error
            print(f"  a reader failed: {type(error).__name__}: {error}", flush=True)

    def rebalanced(self, _consumer, _partitions):
        self.rebalances += 1

    def commit(self):
        deadline = time.time() + PATIENCE
        while time.time() < deadline:
            try:
                self.consumer.commit(asynchronous=False)
                return
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError._NO_OFFSET:
                    return
                # A rebalance under way, or a coordinator that is just elected.
                if code in (KafkaError.REBALANCE_IN_PROGRESS, KafkaError.ILLEGAL_GENERATION,
                            KafkaError.UNKNOWN_MEMBER_ID):
                    return
                time.sleep(0.1)
        raise AssertionError("a commit found no coordinator")

    def commit_now(self):
        """Not from here: a commit beside another thread's poll of the same consumer may not return for a minute."""
        self.to_commit.set()
        wait("the commit", lambda: self.failed or not self.to_commit.is_set())

    def stop(self):
        self.stopping = True
        self.join(PATIENCE)
        if self.failed:
            raise self.failed


def wait(what, condition):
    deadline = time.time() + PATIENCE
    while not condition():
        assert time.time() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.05)


def describe(cluster, group):
    """A group, described. Admin clients remember a coordinator and do not look again when it has moved: each try is another."""
    deadline = time.time() + PATIENCE
    while True:
        client = AdminClient({"bootstrap.servers": cluster.bootstrap})
        try:
            return client.describe_consumer_groups([group])[group].result(PATIENCE)
        except KafkaException:
            assert time.time() < deadline, f"{group} is not described"
            time.sleep(0.2)


def groups(cluster, assignor="range"):
    """A group divides the partitions, survives its coordinator, and goes on where it was."""
    topic, group = "shared", f"readers-{assignor}"
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    if topic not in client.list_topics(timeout=PATIENCE).topics:
        client.create_topics([NewTopic(topic, 4, 3)])[topic].result(PATIENCE)
    offsets = client.list_offsets({TopicPartition(topic, number): OffsetSpec.latest() for number in range(4)})
    before = sum(future.result(PATIENCE).offset for future in offsets.values())
    send = lambda first, count: produce(cluster, topic, [(number % 4, None, str(number), None, NOW)
                                                         for number in range(first, first + count)])
    send(0, 400)
    config = {"partition.assignment.strategy": assignor}
    one = Reader(cluster, group, **config)
    wait("all partitions for one", lambda: one.assigned == {0, 1, 2, 3})
    two = Reader(cluster, group, **config)
    wait("two each", lambda: len(one.assigned) == len(two.assigned) == 2 and one.assigned | two.assigned == {0, 1, 2, 3})
    wait("everything is read", lambda: len(set(one.found + two.found)) == before + 400)
    described = describe(cluster, group)
    equal((described.state.name, len(described.members)), ("STABLE", 2), "the group")
    assert group in {listed.group_id for listed in client.list_consumer_groups().result(PATIENCE).valid}
    killed = described.coordinator.id
    cluster.kill(killed)
    send(400, 400)
    wait("everything is read after the kill", lambda: len(set(one.found + two.found)) == before + 800)
    equal(one.assigned | two.assigned, {0, 1, 2, 3}, "assignments after the kill")
    two.stop()
    wait("all partitions for one again", lambda: one.assigned == {0, 1, 2, 3})
    one.stop()
    cluster.start(killed)
    cluster.await_ready(killed)
    for partition in range(4):
        seen = [offset for reader in (one, two) for at, offset, _ in reader.found if at == partition]
        equal(sorted(set(seen)), list(range(len(set(seen)))), f"offsets of partition {partition}")
    # Offsets were committed at the end: a newcomer has nothing to read, then only what is new.
    three = Reader(cluster, group, **config)
    wait("all partitions for three", lambda: three.assigned == {0, 1, 2, 3})
    send(800, 8)
    wait("eight new records", lambda: len(three.found) >= 8)
    three.stop()
    equal(sorted(int(value) for *_, value in three.found), list(range(800, 808)), "what a newcomer reads")
    # Not by the admin client: librdkafka 2.16 dereferences null when its OffsetFetch is told that the coordinator has moved.
    asker = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": group})
    committed = asker.committed([TopicPartition(topic, number) for number in range(4)], timeout=PATIENCE)
    asker.close()
    equal(sum(partition.offset for partition in committed), before + 808, "committed offsets")
    describe(cluster, group)
    wait("the group's deletion", lambda: deleted(cluster, group))


def groups_over_http(cluster):
    """HTTP shows the groups that Kafka's clients make, from any broker, and sets offsets that they go on from."""
    reader = Reader(cluster, "seen")
    wait("all partitions", lambda: reader.assigned == {0, 1, 2, 3})
    wait("records of each partition", lambda: {partition for partition, *_ in reader.found} == {0, 1, 2, 3})
    reader.commit_now()
    for broker in (1, 2, 3):
        listed = {group["group"]: group for group in cluster.ask(broker, "/v1/groups")["groups"]}
        equal((listed["seen"]["state"], listed["seen"]["members"]), ("Stable", 1), f"the group in broker {broker}'s list")
        shown = cluster.ask(broker, "/v1/groups/seen")
        equal(sorted(shown["members"][0]["assignment"][0]["partitions"]), [0, 1, 2, 3], "what is assigned")
        assert len(shown["offsets"]) == 4 and shown["offsets"][0]["metadata"] == "", shown
    body = {"offsets": [{"topic": "shared", "partition": number, "offset": 5, "metadata": "set"} for number in range(4)]}
    try:
        cluster.ask(1, "/v1/groups/seen/offsets", body, "PUT")
        raise AssertionError("set while there are members")
    except urllib.error.HTTPError as error:
        equal((error.code, json.load(error)["error"]), (409, "GROUP_NOT_EMPTY"), "setting while there are members")
    reader.stop()
    # It says goodbye once, and to nobody where its coordinator moves just then: it is a member until its session ends.
    wait("the group is empty", lambda: not cluster.ask(2, "/v1/groups/seen")["members"])
    cluster.ask(2, "/v1/groups/seen/offsets", body, "PUT")
    equal(cluster.ask(3, "/v1/groups/seen/offsets"), body, "offsets as they were set")
    reader = Reader(cluster, "seen")
    wait("records of each partition", lambda: {partition for partition, *_ in reader.found} == {0, 1, 2, 3})
    reader.stop()
    first = {}
    for partition, offset, _ in reader.found:
        first.setdefault(partition, offset)
    equal(set(first.values()), {5}, "where the group goes on")


def deleted(cluster, group):
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    try:
        client.delete_consumer_groups([group])[group].result(PATIENCE)
    except KafkaException as error:
        return error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND
    return True


def cooperative(cluster):
    groups(cluster, "cooperative-sticky")


def static_membership(cluster):
    """A static member that restarts within its session keeps its partitions, and nobody else notices; one without a name of its own has
    everybody's divided anew."""
    config = {"session.timeout.ms": 30_000}
    one = Reader(cluster, "static", **{"group.instance.id": "one", **config})
    two = Reader(cluster, "static", **{"group.instance.id": "two", **config})
    wait("two each", lambda: len(one.assigned) == len(two.assigned) == 2 and not one.assigned & two.assigned)
    had, before = set(two.assigned), one.rebalances
    two.stop()
    equal(cluster.ask(1, "/v1/groups/static")["state"], "Stable", "the group while a static member is away")
    two = Reader(cluster, "static", **{"group.instance.id": "two", **config})
    wait("its partitions back", lambda: two.assigned == had)
    # The other has heard of it by its heartbeats, if there is anything to hear of.
    read = len(one.found)
    produce(cluster, "shared", [(number, None, "static", None, NOW) for number in sorted(one.assigned)])
    wait("what is new for the other", lambda: len(one.found) > read)
    time.sleep(1.5)
    equal((len(one.assigned), one.rebalances), (2, before), "the other's partitions, and how often they were divided")
    three = Reader(cluster, "static", **config)
    wait("a share for who comes anew", lambda: three.assigned)
    assert one.rebalances > before, "somebody came, and the other was not told"
    for reader in (one, two, three):
        reader.stop()


SCENARIOS = [admin, codecs, recompressed, times, crossing, auto_create, aiokafka, kcat, kafkajs, java, franz_go, leader_kill, groups,
             groups_over_http, cooperative, static_membership]


def main():
    # So that what was started is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cluster, passed, failed, skipped = Cluster(sys.argv[1], ["auto.create.topics.enable=true", "num.partitions=4"]), 0, 0, 0
    wanted = sys.argv[2:]
    try:
        for scenario in [scenario for scenario in SCENARIOS if not wanted or scenario.__name__ in wanted]:
            began = time.time()
            try:
                scenario(cluster)
                passed += 1
                print(f"ok      {scenario.__name__} ({time.time() - began:.1f} s)", flush=True)
            except Skipped as why:
                skipped += 1
                print(f"skipped {scenario.__name__}: {why}", flush=True)
            except Exception as error:  # each scenario is told about
                failed += 1
                cluster.show_logs()
                print(f"FAILED  {scenario.__name__}: {type(error).__name__}: {error}", flush=True)
        for panic in cluster.panics():
            failed += 1
            print(f"FAILED  {panic}", flush=True)
    finally:
        cluster.close(keep=failed > 0)
    print(f"kafka-smoke: {passed} passed, {failed} failed, {skipped} skipped")
    strict = os.environ.get("SMOKE_STRICT", "") not in ("", "0")
    sys.exit(1 if failed or not passed or skipped and strict else 0)


if __name__ == "__main__":
    main()
