// franz-go against Pontoon: each codec and ack level, exactly once across a leader's death, a group across a rebalance and its
// coordinator's, seeking by time, the admin client. Run by scripts/kafka-smoke, which does what is asked for in lines that begin with "@".
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const patience = time.Minute

var (
	brokers = strings.Split(os.Args[1], ",")
	answers = bufio.NewReader(os.Stdin)
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	client := connect()
	admin := kadm.NewClient(client)
	listed, err := admin.ListBrokers(ctx)
	check(err)
	equal(listed.NodeIDs(), []int32{1, 2, 3}, "brokers")
	topics := map[string]int32{"go-codecs": 1, "go-exact": 1, "go-group": 4}
	for topic, partitions := range topics {
		_, err := admin.CreateTopic(ctx, partitions, 3, nil, topic)
		check(err)
		_, err = admin.CreateTopic(ctx, partitions, 3, nil, topic)
		if !errors.Is(err, kerr.TopicAlreadyExists) {
			fail("created twice: %v", err)
		}
	}
	produceEachWay(ctx, admin)
	seekByTime(ctx, admin)
	exactlyOnce(ctx)
	group(ctx)
	client.Close()
	// Another client: this one's connections ended with the brokers that were killed, and it says so once.
	client = connect()
	admin = kadm.NewClient(client)
	administer(ctx, admin)
	for topic := range topics {
		_, err := admin.DeleteTopic(ctx, topic)
		check(err)
	}
	client.Close()
}

// Each codec with each ack level; everything comes back as it went.
func produceEachWay(ctx context.Context, admin *kadm.Client) {
	topic := "go-codecs"
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	acks := map[string][]kgo.Opt{
		"all":        {kgo.RequiredAcks(kgo.AllISRAcks()), kgo.DisableIdempotentWrite()},
		"leader":     {kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite()},
		"none":       {kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite()},
		"idempotent": {},
	}
	var sent []*kgo.Record
	for codec, compression := range codecs {
		for level, options := range acks {
			producer := connect(append(options, kgo.ProducerBatchCompression(compression))...)
			var records []*kgo.Record
			for number := range 20 {
				records = append(records, &kgo.Record{
					Topic: topic, Key: []byte(codec + "/" + level), Value: []byte(strings.Repeat(fmt.Sprint(number, " "), 30)),
					Headers:   []kgo.RecordHeader{{Key: "twice", Value: []byte("1")}, {Key: "twice", Value: []byte("2")}, {Key: "null"}},
					Timestamp: time.UnixMilli(time.Now().UnixMilli()),
				})
			}
			check(producer.ProduceSync(ctx, records...).FirstErr())
			if level != "none" {
				equal(records[0].Offset, int64(len(sent)), "the first offset of "+codec+"/"+level)
			}
			sent = append(sent, records...)
			// Nobody says when records with acks=0 are there, and the next producer is another connection.
			until("records of acks=0", func() bool { return end(ctx, admin, topic) == int64(len(sent)) })
			producer.Close()
		}
	}
	for at, record := range read(ctx, topic, len(sent), kgo.NewOffset().AtStart()) {
		equal(record.Offset, int64(at), "the offset")
		equal(string(record.Key)+string(record.Value), string(sent[at].Key)+string(sent[at].Value), "key and value")
		equal(record.Headers, sent[at].Headers, "headers")
		equal(record.Timestamp.UnixMilli(), sent[at].Timestamp.UnixMilli(), "the timestamp")
	}
}

func seekByTime(ctx context.Context, admin *kadm.Client) {
	topic := "go-codecs"
	later := time.Now().UnixMilli() + 50
	time.Sleep(60 * time.Millisecond)
	producer := connect()
	record := &kgo.Record{Topic: topic, Value: []byte("later")}
	check(producer.ProduceSync(ctx, record).FirstErr())
	producer.Close()
	found, err := admin.ListOffsetsAfterMilli(ctx, later, topic)
	check(err)
	equal(found[topic][0].Offset, record.Offset, "the offset at a time")
	found, err = admin.ListOffsetsAfterMilli(ctx, 0, topic)
	check(err)
	equal(found[topic][0].Offset, int64(0), "the first offset")
	records := read(ctx, topic, 1, kgo.NewOffset().AfterMilli(later))
	equal(string(records[0].Value), "later", "what is read from a time on")
}

// An idempotent producer, which is what this client is unless told otherwise, loses nothing and doubles nothing while its leader is killed,
// with a request on its way at any moment.
func exactlyOnce(ctx context.Context) {
	topic := "go-exact"
	producer := connect()
	count := 0
	send := func() {
		var records []*kgo.Record
		for part := range 3 {
			records = append(records, &kgo.Record{Topic: topic, Value: fmt.Appendf(nil, "%d.%d", count, part)})
		}
		check(producer.ProduceSync(ctx, records...).FirstErr())
		equal(records[0].Offset, int64(3*count), "the first offset")
		count++
	}
	for count < 40 {
		send()
	}
	killed := make(chan struct{})
	go func() {
		ask("kill-leader " + topic + " 0")
		close(killed)
	}()
	for alive := true; alive; send() {
		select {
		case <-killed:
			alive = false
		default:
		}
	}
	for end := count + 40; count < end; {
		send()
	}
	producer.Close()
	ask("restart")
	for at, record := range read(ctx, topic, 3*count, kgo.NewOffset().AtStart()) {
		equal(string(record.Value), fmt.Sprintf("%d.%d", at/3, at%3), "the record at "+strconv.Itoa(at))
	}
}

// What the members of the group have read.
type seen struct {
	sync.Mutex
	values map[string]string
}

func (seen *seen) count() int {
	seen.Lock()
	defer seen.Unlock()
	return len(seen.values)
}

// A member of the group, polling until it is closed.
type member struct {
	client   *kgo.Client
	mutex    sync.Mutex
	assigned map[int32]bool
	done     chan struct{}
}

func join(group, topic string, seen *seen) *member {
	member := &member{assigned: map[int32]bool{}, done: make(chan struct{})}
	note := func(has bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, partitions map[string][]int32) {
			member.mutex.Lock()
			defer member.mutex.Unlock()
			for _, partition := range partitions[topic] {
				if has {
					member.assigned[partition] = true
				} else {
					delete(member.assigned, partition)
				}
			}
		}
	}
	member.client = connect(
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(10*time.Second), kgo.HeartbeatInterval(500*time.Millisecond), kgo.RebalanceTimeout(10*time.Second),
		kgo.OnPartitionsAssigned(note(true)), kgo.OnPartitionsRevoked(note(false)), kgo.OnPartitionsLost(note(false)),
	)
	go func() {
		defer close(member.done)
		for {
			fetches := member.client.PollFetches(context.Background())
			if fetches.IsClientClosed() {
				return
			}
			seen.Lock()
			fetches.EachRecord(func(record *kgo.Record) {
				seen.values[fmt.Sprintf("%d/%d", record.Partition, record.Offset)] = string(record.Value)
			})
			seen.Unlock()
		}
	}()
	return member
}

func (member *member) count() int {
	member.mutex.Lock()
	defer member.mutex.Unlock()
	return len(member.assigned)
}

func (member *member) leave(ctx context.Context) {
	check(member.client.CommitUncommittedOffsets(ctx))
	member.client.Close()
	<-member.done
}

// Two members divide the partitions, cooperatively as is this client's default, survive their coordinator, and the group goes on where it was.
func group(ctx context.Context) {
	topic, group := "go-group", "franz-go"
	producer := connect(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	send := func(first, count int) {
		var records []*kgo.Record
		for at := range count {
			records = append(records, &kgo.Record{Topic: topic, Partition: int32((first + at) % 4), Value: fmt.Append(nil, first+at)})
		}
		check(producer.ProduceSync(ctx, records...).FirstErr())
	}
	send(0, 100)
	seen := &seen{values: map[string]string{}}
	one := join(group, topic, seen)
	until("all partitions for one", func() bool { return one.count() == 4 })
	two := join(group, topic, seen)
	until("two each", func() bool { return one.count() == 2 && two.count() == 2 })
	until("100 records", func() bool { return seen.count() == 100 })
	ask("kill-coordinator " + group)
	send(100, 100)
	until("200 records after the coordinator was killed", func() bool { return seen.count() == 200 })
	var values []int
	for _, value := range seen.values {
		number, err := strconv.Atoi(value)
		check(err)
		values = append(values, number)
	}
	sort.Ints(values)
	for at, value := range values {
		equal(value, at, "a record of the group's")
	}
	one.leave(ctx)
	until("all partitions for the other", func() bool { return two.count() == 4 })
	two.leave(ctx)
	ask("restart")
	producer.Close()
}

func administer(ctx context.Context, admin *kadm.Client) {
	topic, group := "go-codecs", "franz-go"
	offsets, err := admin.FetchOffsets(ctx, group)
	check(err)
	for partition := range int32(4) {
		offset, _ := offsets.Lookup("go-group", partition)
		equal(offset.At, int64(50), "a committed offset")
	}
	described, err := admin.DescribeGroups(ctx, group)
	check(err)
	check(described.Error())
	equal([]any{described[group].State, len(described[group].Members)}, []any{"Empty", 0}, "the group")
	listed, err := admin.ListGroups(ctx)
	check(err)
	equal(listed[group].ProtocolType, "consumer", "the group's protocol type")
	first := kadm.Offsets{}
	first.AddOffset(topic, 0, 1, -1)
	deleted, err := admin.DeleteRecords(ctx, first)
	check(err)
	check(deleted.Error())
	starts, err := admin.ListStartOffsets(ctx, topic)
	check(err)
	equal(starts[topic][0].Offset, int64(1), "the log start")
	value := "1234567"
	altered, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &value}}, topic)
	check(err)
	for _, one := range altered {
		check(one.Err)
	}
	configs, err := admin.DescribeTopicConfigs(ctx, topic)
	check(err)
	config, err := configs.On(topic, nil)
	check(err)
	for _, one := range config.Configs {
		if one.Key == "retention.ms" {
			equal(one.MaybeValue(), value, "retention.ms")
		}
	}
	grown, err := admin.UpdatePartitions(ctx, 2, topic)
	check(err)
	check(grown.Error())
	// Another broker than the one that was asked to may answer, from a catalog that is a moment older: so with Kafka.
	until("two partitions", func() bool {
		found, err := admin.ListTopics(ctx, topic)
		check(err)
		return len(found[topic].Partitions) == 2
	})
	gone, err := admin.DeleteGroups(ctx, group)
	check(err)
	check(gone[group].Err)
}

func connect(options ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(brokers...), kgo.ClientID("smoke"))...)
	check(err)
	return client
}

// The first `count` records of partition 0, from `offset` on.
func read(ctx context.Context, topic string, count int, offset kgo.Offset) []*kgo.Record {
	consumer := connect(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: offset}}))
	defer consumer.Close()
	var found []*kgo.Record
	for len(found) < count {
		fetches := consumer.PollFetches(ctx)
		check(fetches.Err())
		found = append(found, fetches.Records()...)
	}
	return found[:count]
}

func end(ctx context.Context, admin *kadm.Client, topic string) int64 {
	ends, err := admin.ListEndOffsets(ctx, topic)
	check(err)
	return ends[topic][0].Offset
}

func ask(what string) {
	fmt.Println("@" + what)
	answer, err := answers.ReadString('\n')
	check(err)
	equal(answer, "done\n", "the answer to "+what)
}

func until(what string, condition func() bool) {
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			fail("%s: not within a minute", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func equal(found, expected any, what string) {
	if !reflect.DeepEqual(found, expected) {
		fail("%s: %v is not %v", what, found, expected)
	}
}

func check(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func fail(format string, values ...any) {
	panic(fmt.Sprintf(format, values...))
}
