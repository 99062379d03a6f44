"""aiokafka against Pontoon: each codec and ack level, exactly once across a leader's death, a group across a rebalance and its
coordinator's, seeking by time, the admin client. Run by scripts/kafka-smoke, which does what is asked for in lines that begin with "@"."""

import asyncio
import contextlib
import sys
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

BOOTSTRAP = sys.argv[1]
PATIENCE = 60
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]
DAY = 86_400_000


def equal(found, expected, what):
    assert found == expected, f"{what}: {found!r} is not {expected!r}"


async def ask(what):
    print(f"@{what}", flush=True)
    answer = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    equal(answer.strip(), "done", f"the answer to {what}")


async def until(what, condition):
    deadline = time.time() + PATIENCE
    while not condition():
        assert time.time() < deadline, f"{what}: not within {PATIENCE} s"
        await asyncio.sleep(0.05)


async def again(call):
    """This admin client does not look again by itself while a broker that came back is given its share of leaderships."""
    deadline = time.time() + PATIENCE
    while True:
        try:
            return await call()
        except KafkaError:
            assert time.time() < deadline, f"not within {PATIENCE} s"
            await asyncio.sleep(0.1)


async def read(topic, count, offset=0):
    """The first records of partition 0 from an offset on, each at the next offset."""
    consumer = AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, enable_auto_commit=False, group_id=None)
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, offset)
    found = [await asyncio.wait_for(consumer.getone(), PATIENCE) for _ in range(count)]
    await consumer.stop()
    equal([record.offset for record in found], list(range(offset, offset + count)), f"offsets of {topic}")
    return found


async def create(admin):
    """Topics, and what is said if they are there already."""
    topics = [NewTopic("aio-codecs", 1, 3), NewTopic("aio-exact", 1, 3), NewTopic("aio-group", 4, 3)]
    for code in (0, TopicAlreadyExistsError.errno):
        response = await admin.create_topics(topics)
        equal([error[1] for error in response.topic_errors], [code] * 3, "creation")


async def each_way(admin):
    """Each codec with each ack level: offsets are dense, and everything comes back as it went."""
    expected = []
    for codec in CODECS:
        for acks in (0, 1, "all"):
            producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, acks=acks, compression_type=codec, linger_ms=5)
            await producer.start()
            headers = [("twice", b"1"), ("twice", b"2"), ("null", None)]
            sent = []
            for number in range(20):
                key, value = f"{codec}/{acks}".encode(), f"{number} ".encode() * 30
                sent.append(await producer.send("aio-codecs", value, key, partition=0, timestamp_ms=int(time.time() * 1000), headers=headers))
                expected.append((key, value, tuple(headers)))
            done = [await one for one in sent]
            await producer.stop()
            if acks != 0:
                equal([one.offset for one in done], list(range(len(expected) - 20, len(expected))), f"offsets of {codec}, acks={acks}")
            # With acks=0 nobody says when they are there.
            found = await read("aio-codecs", 20, len(expected) - 20)
            equal([(one.key, one.value, tuple(one.headers)) for one in found], expected[-20:], f"records of {codec}, acks={acks}")


async def by_time(_admin):
    """Seeking by time finds the first record at or after it."""
    last = (await read("aio-codecs", 300))[-1].timestamp
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP)
    await producer.start()
    await producer.send_and_wait("aio-codecs", b"later", partition=0, timestamp_ms=last + 1000)
    await producer.stop()
    partition = TopicPartition("aio-codecs", 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=None)
    await consumer.start()
    found = (await consumer.offsets_for_times({partition: last + 1}))[partition]
    equal((found.offset, found.timestamp), (300, last + 1000), "the offset at a time")
    equal(await consumer.offsets_for_times({partition: last + DAY}), {partition: None}, "after the end")
    equal(await consumer.end_offsets([partition]), {partition: 301}, "the end")
    await consumer.stop()
    equal((await read("aio-codecs", 1, 300))[0].value, b"later", "what is read from there")


async def exactly_once(_admin):
    """An idempotent producer loses nothing and doubles nothing while its leader is killed."""
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True, max_batch_size=200, request_timeout_ms=5000)
    await producer.start()
    sent = []
    for number in range(2000):
        if number == 700:
            await ask("kill-leader aio-exact 0")
        sent.append(await producer.send("aio-exact", str(number).encode(), partition=0))
        if number % 50 == 0:
            await asyncio.sleep(0.005)
    offsets = [(await asyncio.wait_for(one, PATIENCE)).offset for one in sent]
    await producer.stop()
    await ask("restart")
    equal(offsets, list(range(2000)), "acknowledged offsets")
    equal([int(record.value) for record in await read("aio-exact", 2000)], list(range(2000)), "every record once, in order")


class Member:
    """A member of a group, in a task."""

    def __init__(self, seen):
        self.seen, self.stopping, self.assigned = seen, False, set()
        self.task = asyncio.create_task(self.run())

    async def run(self):
        consumer = AIOKafkaConsumer("aio-group", bootstrap_servers=BOOTSTRAP, group_id="aio", auto_offset_reset="earliest",
                                    enable_auto_commit=False, session_timeout_ms=10_000, heartbeat_interval_ms=500,
                                    rebalance_timeout_ms=10_000)
        await consumer.start()
        try:
            while not self.stopping:
                for partition, records in (await consumer.getmany(timeout_ms=100)).items():
                    self.seen.update({(partition.partition, record.offset): int(record.value) for record in records})
                self.assigned = {partition.partition for partition in consumer.assignment()}
                # A rebalance may come between: then it is read, and committed, again.
                with contextlib.suppress(KafkaError):
                    await consumer.commit()
            deadline = time.time() + PATIENCE
            while True:
                try:
                    await consumer.commit()
                    break
                except KafkaError:  # the coordinator is just elected
                    assert time.time() < deadline, "a commit found no coordinator"
                    await asyncio.sleep(0.1)
        finally:
            await consumer.stop()

    async def stop(self):
        self.stopping = True
        await asyncio.wait_for(self.task, 2 * PATIENCE)


async def group(admin):
    """Two members divide the partitions, survive their coordinator, and the group's offsets are what was read."""
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True)
    await producer.start()

    async def send(first):
        sent = [await producer.send("aio-group", str(number).encode(), partition=number % 4) for number in range(first, first + 200)]
        await asyncio.gather(*sent)

    await send(0)
    seen = {}
    one = Member(seen)
    await until("all partitions for one", lambda: len(one.assigned) == 4)
    two = Member(seen)
    await until("two each", lambda: len(one.assigned) == len(two.assigned) == 2 and not one.assigned & two.assigned)
    await until("200 records", lambda: len(seen) == 200)
    await ask("kill-coordinator aio")
    await send(200)
    await until("400 records after the coordinator was killed", lambda: len(seen) == 400)
    equal(sorted(seen.values()), list(range(400)), "values")
    await one.stop()
    await until("all partitions for the other", lambda: len(two.assigned) == 4)
    await asyncio.sleep(1)  # what was read and not committed before the rebalance is read again
    await two.stop()
    await producer.stop()
    await ask("restart")
    offsets = await again(lambda: admin.list_consumer_group_offsets("aio"))
    equal({partition.partition: found.offset for partition, found in offsets.items()}, dict.fromkeys(range(4), 100), "committed offsets")


async def administer(admin):
    described = await admin.describe_cluster()
    equal(sorted(broker["node_id"] for broker in described["brokers"]), [1, 2, 3], "brokers")
    assert "aio" in {name for name, _ in await again(admin.list_consumer_groups)}
    await admin.create_partitions({"aio-codecs": NewPartitions(2)})
    # Another broker than the one that was asked to may answer, from a catalog that is a moment older: so with Kafka.
    deadline = time.time() + PATIENCE
    while len((await admin.describe_topics(["aio-codecs"]))[0]["partitions"]) != 2:
        assert time.time() < deadline, f"two partitions: not within {PATIENCE} s"
        await asyncio.sleep(0.05)
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "aio-codecs", configs={"retention.ms": "7654321"})])
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, "aio-codecs")])
    values = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    equal(values["retention.ms"], "7654321", "retention.ms")
    first = TopicPartition("aio-codecs", 0)
    equal(await again(lambda: admin.delete_records({first: RecordsToDelete(before_offset=7)})), {first: 7}, "the low watermark")
    consumer = AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=None)
    await consumer.start()
    equal(await consumer.beginning_offsets([first]), {first: 7}, "the log start")
    await consumer.stop()
    await admin.delete_topics(["aio-codecs", "aio-exact", "aio-group"])


async def main():
    admin = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await admin.start()
    for step in (create, each_way, by_time, exactly_once, group, administer):
        await step(admin)
    await admin.close()


asyncio.run(main())
