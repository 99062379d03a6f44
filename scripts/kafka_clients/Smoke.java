// The Java client against Pontoon: each codec and ack level, exactly once across a leader's death, a cooperative group across a
// rebalance and its coordinator's, seeking by time, the admin client. Run as a single file by scripts/kafka-smoke, which does what is
// asked for in lines that begin with "@".
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.*;

public class Smoke {
    static final String TOPIC = "from-java";
    static final List<String> CODECS = List.of("none", "gzip", "snappy", "lz4", "zstd");
    static final int EACH = 120;
    static final BufferedReader ANSWERS = new BufferedReader(new InputStreamReader(System.in));
    static Map<String, Object> base;

    static void equal(Object found, Object expected, String what) {
        if (!expected.equals(found)) throw new AssertionError(what + ": " + found + " is not " + expected);
    }

    static Map<String, Object> with(Map<String, Object> more) {
        Map<String, Object> config = new HashMap<>(base);
        config.putAll(more);
        return config;
    }

    static void ask(String what) throws Exception {
        System.out.println("@" + what);
        equal(ANSWERS.readLine(), "done", "the answer to " + what);
    }

    static void until(String what, BooleanSupplier condition) throws Exception {
        long end = System.currentTimeMillis() + 60_000;
        while (!condition.getAsBoolean()) {
            if (System.currentTimeMillis() > end) throw new AssertionError(what + ": not within a minute");
            Thread.sleep(50);
        }
    }

    public static void main(String[] args) throws Exception {
        base = Map.of("bootstrap.servers", args[0]);
        try (Admin admin = Admin.create(base)) {
            equal(admin.describeCluster().nodes().get().size(), 3, "brokers");
            admin.createTopics(List.of(new NewTopic(TOPIC, 3, (short) 3))).all().get();
            NewTopic planned = new NewTopic("planned", Optional.of(2), Optional.empty());
            CreateTopicsResult plan = admin.createTopics(List.of(planned), new CreateTopicsOptions().validateOnly(true));
            equal(plan.numPartitions("planned").get(), 2, "partitions of what is only planned");
            equal(plan.replicationFactor("planned").get(), 3, "replicas of what is only planned");
            equal(plan.config("planned").get().get("cleanup.policy").value(), "delete", "configuration of what is only planned");
            produce();
            consume(admin);
            recompressed(admin);
            administer(admin);
            seekByTime(admin);
            everyAckLevel(admin);
            exactlyOnce(admin);
            group(admin);
            admin.deleteTopics(List.of(TOPIC)).all().get();
        }
        System.out.println("java: ok");
    }

    static void produce() throws Exception {
        int done = 0;
        for (String codec : CODECS) {
            var config = with(Map.of("compression.type", codec, "linger.ms", 5));
            try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
                List<Future<RecordMetadata>> sent = new ArrayList<>();
                for (int number = 0; number < EACH; number++) {
                    var record = new ProducerRecord<>(TOPIC, number % 3, codec, codec + number);
                    record.headers().add("twice", "1".getBytes()).add("twice", "2".getBytes());
                    sent.add(producer.send(record));
                }
                for (int number = 0; number < EACH; number++) {
                    long offset = sent.get(number).get(30, TimeUnit.SECONDS).offset();
                    equal(offset, (long) (done + number) / 3, "offset of " + codec + number);
                }
            }
            done += EACH;
        }
    }

    static void consume(Admin admin) throws Exception {
        var config = with(Map.of("group.id", "java", "auto.offset.reset", "earliest", "enable.auto.commit", false,
            "isolation.level", "read_committed",
            "partition.assignment.strategy", CooperativeStickyAssignor.class.getName()));
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(TOPIC));
            Map<TopicPartition, Long> next = new TreeMap<>((a, b) -> a.partition() - b.partition());
            int count = 0;
            long end = System.currentTimeMillis() + 60_000;
            while (count < EACH * CODECS.size() && System.currentTimeMillis() < end) {
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    var partition = new TopicPartition(record.topic(), record.partition());
                    equal(record.offset(), next.getOrDefault(partition, 0L), "offset in " + partition);
                    int number = (int) (record.offset() % (EACH / 3)) * 3 + record.partition();
                    equal(record.value(), record.key() + number, "value at " + partition + " " + record.offset());
                    equal(record.headers().toArray().length, 2, "headers");
                    next.put(partition, record.offset() + 1);
                    count++;
                }
            }
            equal(count, EACH * CODECS.size(), "records");
            consumer.commitSync();
            var first = new TopicPartition(TOPIC, 0);
            equal(consumer.committed(Set.of(first)).get(first).offset(), next.get(first), "the committed offset");
            equal(consumer.offsetsForTimes(Map.of(first, 0L)).get(first).offset(), 0L, "the offset at time 0");
            equal(consumer.endOffsets(List.of(first)).get(first), next.get(first), "the end");
            var group = admin.describeConsumerGroups(List.of("java")).all().get().get("java");
            equal(group.groupState(), GroupState.STABLE, "the group's state");
            equal(group.members().iterator().next().assignment().topicPartitions().size(), 3, "assigned partitions");
        }
        // It says goodbye once, and to nobody where its coordinator moves just then: it is a member until its session ends.
        until("the group is empty", () -> {
            try {
                return admin.describeConsumerGroups(List.of("java")).all().get().get("java").groupState() == GroupState.EMPTY;
            } catch (Exception error) {
                throw new AssertionError(error);
            }
        });
    }

    /** Topics that have a compression of their own: whatever a producer sends, it is read as it went. */
    static void recompressed(Admin admin) throws Exception {
        for (String kept : List.of("uncompressed", "gzip", "snappy", "lz4", "zstd")) {
            String topic = "kept-" + kept;
            admin.createTopics(List.of(new NewTopic(topic, 1, (short) 3).configs(Map.of("compression.type", kept)))).all().get();
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (String codec : CODECS) {
                var config = with(Map.of("compression.type", codec, "linger.ms", 5));
                try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
                    for (int number = 0; number < EACH; number++) {
                        var record = new ProducerRecord<>(topic, 0, codec, (codec + number).repeat(20));
                        record.headers().add("twice", "1".getBytes()).add("twice", null);
                        sent.add(producer.send(record));
                    }
                }
            }
            for (int at = 0; at < sent.size(); at++) equal(sent.get(at).get().offset(), (long) at, "offset in " + topic);
            var config = with(Map.of("group.id", "unused", "enable.auto.commit", false));
            try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer())) {
                var partition = new TopicPartition(topic, 0);
                consumer.assign(List.of(partition));
                consumer.seek(partition, 0);
                int[] at = {0};
                until("all of " + topic, () -> {
                    for (var record : consumer.poll(Duration.ofMillis(100))) {
                        String codec = CODECS.get(at[0] / EACH);
                        equal(record.offset(), (long) at[0], "offset in " + topic);
                        equal(record.key(), codec, "key at " + topic + " " + at[0]);
                        equal(record.value(), (codec + at[0] % EACH).repeat(20), "value at " + topic + " " + at[0]);
                        equal(record.headers().toArray().length, 2, "headers");
                        at[0]++;
                    }
                    return at[0] == sent.size();
                });
            }
            admin.deleteTopics(List.of(topic)).all().get();
        }
    }

    static void administer(Admin admin) throws Exception {
        var first = new TopicPartition(TOPIC, 0);
        var latest = admin.listOffsets(Map.of(first, OffsetSpec.maxTimestamp())).all().get().get(first);
        equal(latest.offset() >= 0 && latest.timestamp() > 0, true, "the largest timestamp, " + latest);
        var topic = new ConfigResource(ConfigResource.Type.TOPIC, TOPIC);
        var change = new AlterConfigOp(new ConfigEntry("retention.ms", "7654321"), AlterConfigOp.OpType.SET);
        admin.incrementalAlterConfigs(Map.of(topic, List.of(change))).all().get();
        var config = admin.describeConfigs(List.of(topic)).all().get().get(topic);
        equal(config.get("retention.ms").value(), "7654321", "retention.ms");
        admin.deleteRecords(Map.of(first, RecordsToDelete.beforeOffset(5))).all().get();
        equal(admin.listOffsets(Map.of(first, OffsetSpec.earliest())).all().get().get(first).offset(), 5L, "log start");
        equal(admin.listGroups().all().get().stream().anyMatch(group -> group.groupId().equals("java")), true, "listed");
        admin.deleteConsumerGroupOffsets("java", Set.of(first)).all().get();
        equal(admin.listConsumerGroupOffsets("java").partitionsToOffsetAndMetadata().get().size(), 2, "offsets left");
        admin.deleteConsumerGroups(List.of("java")).all().get();
        admin.createPartitions(Map.of(TOPIC, NewPartitions.increaseTo(4))).all().get();
        equal(admin.describeTopics(List.of(TOPIC)).allTopicNames().get().get(TOPIC).partitions().size(), 4, "partitions");
    }

    static KafkaConsumer<String, String> reader(Map<String, Object> more) {
        return new KafkaConsumer<>(with(more), new StringDeserializer(), new StringDeserializer());
    }

    /** The values of a topic's partition 0 from an offset on, each at the next offset. */
    static List<String> read(String topic, long from, int count) {
        var partition = new TopicPartition(topic, 0);
        var found = new ArrayList<String>();
        try (var consumer = reader(Map.of("enable.auto.commit", false))) {
            consumer.assign(List.of(partition));
            consumer.seek(partition, from);
            long end = System.currentTimeMillis() + 60_000;
            while (found.size() < count && System.currentTimeMillis() < end) {
                for (var record : consumer.poll(Duration.ofMillis(200))) {
                    equal(record.offset(), from + found.size(), "offset in " + topic);
                    found.add(record.value());
                }
            }
        }
        return found;
    }

    static void seekByTime(Admin admin) throws Exception {
        String topic = "java-times";
        var partition = new TopicPartition(topic, 0);
        admin.createTopics(List.of(new NewTopic(topic, 1, (short) 3).configs(Map.of("retention.ms", "-1")))).all().get();
        try (var producer = new KafkaProducer<>(base, new StringSerializer(), new StringSerializer())) {
            for (int number = 0; number < 50; number++) {
                producer.send(new ProducerRecord<>(topic, 0, 1_600_000_000_000L + 10 * number, null, "" + number)).get();
            }
        }
        try (var consumer = reader(Map.of("enable.auto.commit", false))) {
            var found = consumer.offsetsForTimes(Map.of(partition, 1_600_000_000_301L)).get(partition);
            equal(found.offset(), 31L, "the offset at a time");
            equal(found.timestamp(), 1_600_000_000_310L, "its time");
            equal(consumer.offsetsForTimes(Map.of(partition, 1_700_000_000_000L)).get(partition) == null, true, "after the end");
            equal(read(topic, found.offset(), 19).get(0), "31", "what is read from there");
        }
        admin.deleteTopics(List.of(topic)).all().get();
    }

    /** Each codec with each ack level. */
    static void everyAckLevel(Admin admin) throws Exception {
        String topic = "java-acks";
        admin.createTopics(List.of(new NewTopic(topic, 1, (short) 3))).all().get();
        var expected = new ArrayList<String>();
        for (String codec : CODECS) {
            for (String acks : List.of("0", "1", "all")) {
                var config = with(Map.of("acks", acks, "enable.idempotence", false, "compression.type", codec));
                int first = expected.size();
                try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
                    for (int number = 0; number < 10; number++) {
                        String value = (codec + acks + number).repeat(20);
                        var sent = producer.send(new ProducerRecord<>(topic, 0, acks, value)).get(30, TimeUnit.SECONDS);
                        equal(sent.offset(), acks.equals("0") ? -1L : expected.size(), "offset of " + codec + " with acks=" + acks);
                        expected.add(value);
                    }
                }
                // With acks=0 nobody says when they are there.
                var added = expected.subList(first, expected.size());
                equal(read(topic, first, added.size()), added, "records of " + codec + " with acks=" + acks);
            }
        }
        admin.deleteTopics(List.of(topic)).all().get();
    }

    /** An idempotent producer, five requests in flight, loses nothing and doubles nothing while its leader is killed. */
    static void exactlyOnce(Admin admin) throws Exception {
        String topic = "java-exact";
        admin.createTopics(List.of(new NewTopic(topic, 1, (short) 3))).all().get();
        var expected = new ArrayList<String>();
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        var config = with(Map.of("batch.size", 200, "linger.ms", 0));
        try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
            for (int number = 0; number < 3000; number++) {
                if (number == 1000) ask("kill-leader " + topic + " 0");
                sent.add(producer.send(new ProducerRecord<>(topic, 0, null, "" + number)));
                expected.add("" + number);
                if (number % 100 == 0) Thread.sleep(5);
            }
            for (int number = 0; number < 3000; number++) {
                equal(sent.get(number).get(60, TimeUnit.SECONDS).offset(), (long) number, "offset of " + number);
            }
        }
        ask("restart");
        equal(read(topic, 0, 3000), expected, "every record once, in order");
        admin.deleteTopics(List.of(topic)).all().get();
    }

    /** A member of a group, in a thread of its own. */
    static class Member extends Thread {
        final Map<String, String> found;
        volatile Set<TopicPartition> assigned = Set.of();
        volatile boolean stopping;
        volatile Exception failed;

        Member(Map<String, String> found) {
            this.found = found;
            setDaemon(true);
            start();
        }

        @Override public void run() {
            var config = Map.<String, Object>of("group.id", "java-group", "auto.offset.reset", "earliest", "enable.auto.commit", false,
                "session.timeout.ms", 10_000, "heartbeat.interval.ms", 500, "metadata.max.age.ms", 2000,
                "partition.assignment.strategy", CooperativeStickyAssignor.class.getName());
            try (var consumer = reader(config)) {
                consumer.subscribe(List.of("java-group"));
                while (!stopping) {
                    for (var record : consumer.poll(Duration.ofMillis(100))) {
                        found.put(record.partition() + "/" + record.offset(), record.value());
                    }
                    assigned = consumer.assignment();
                }
                consumer.commitSync(Duration.ofSeconds(60));
            } catch (Exception error) {
                failed = error;
            }
        }

        void finish() throws Exception {
            stopping = true;
            join(70_000);
            if (failed != null) throw failed;
        }
    }

    /** Two members divide the partitions, survive their coordinator, and the group's offsets are what was read. */
    static void group(Admin admin) throws Exception {
        String topic = "java-group";
        admin.createTopics(List.of(new NewTopic(topic, 4, (short) 3))).all().get();
        Map<String, String> found = new ConcurrentHashMap<>();
        try (var producer = new KafkaProducer<>(base, new StringSerializer(), new StringSerializer())) {
            for (int number = 0; number < 200; number++) producer.send(new ProducerRecord<>(topic, number % 4, null, "" + number));
            producer.flush();
            var one = new Member(found);
            until("all partitions for one", () -> one.assigned.size() == 4);
            var two = new Member(found);
            until("two each", () -> one.assigned.size() == 2 && two.assigned.size() == 2);
            until("200 records", () -> found.size() == 200);
            ask("kill-coordinator java-group");
            for (int number = 200; number < 400; number++) producer.send(new ProducerRecord<>(topic, number % 4, null, "" + number));
            producer.flush();
            until("400 records after the coordinator was killed", () -> found.size() == 400);
            equal(new java.util.TreeSet<>(found.values()).size(), 400, "different records");
            one.finish();
            until("all partitions for the other", () -> two.assigned.size() == 4);
            two.finish();
        }
        ask("restart");
        var offsets = admin.listConsumerGroupOffsets("java-group").partitionsToOffsetAndMetadata().get();
        for (int partition = 0; partition < 4; partition++) {
            equal(offsets.get(new TopicPartition(topic, partition)).offset(), 100L, "committed of partition " + partition);
        }
        var described = admin.describeConsumerGroups(List.of("java-group")).all().get().get("java-group");
        equal(described.groupState(), GroupState.EMPTY, "the group's state");
        admin.deleteConsumerGroups(List.of("java-group")).all().get();
        admin.deleteTopics(List.of(topic)).all().get();
    }
}
