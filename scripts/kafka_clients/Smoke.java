// The Java client against Pontoon: each codec, a cooperative group, the admin client. Run by scripts/kafka-smoke as a single file.
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
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
    static Map<String, Object> base;

    static void equal(Object found, Object expected, String what) {
        if (!expected.equals(found)) throw new AssertionError(what + ": " + found + " is not " + expected);
    }

    static Map<String, Object> with(Map<String, Object> more) {
        Map<String, Object> config = new HashMap<>(base);
        config.putAll(more);
        return config;
    }

    public static void main(String[] args) throws Exception {
        base = Map.of("bootstrap.servers", args[0]);
        try (Admin admin = Admin.create(base)) {
            equal(admin.describeCluster().nodes().get().size(), 3, "brokers");
            admin.createTopics(List.of(new NewTopic(TOPIC, 3, (short) 3))).all().get();
            produce();
            consume(admin);
            administer(admin);
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
}
