//! Pontoon's Kafka door behind [`Client`]: what the world's Kafka clients do, with every outcome told exactly.
//!
//! It finds leaders and coordinators itself, as Kafka's clients must. What certainly changed nothing fails; an answer that leaves it open, a
//! time-out or a broken connection is unknown. A linearizable read asks for the end first (ListOffsets, latest), and reads up to there.
//!
//! [`connection`] is one broker, [`brokers`] all of them, [`batch`] values as records, [`group`] a member of a consumer group.

mod batch;
mod brokers;
mod connection;
mod group;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{BrokerId, FetchRequest, InitProducerIdRequest, ListOffsetsRequest, ProduceRequest};

use self::brokers::{Brokers, topic_name};
use self::connection::NoAnswer;
use self::group::{Member, NotCommitted};
use super::http::Place;
use super::ledger::Ledger;
use super::producer::{self, Batch, Producer, Produces, Sequence};
use super::retries::{Counted, Retries};
use super::{Client, Connector, Fetched, FromGroup, Sent};
use crate::history::{Key, Offset, Records, Value};
use crate::recorder::Recorder;

/// How long the broker may wait for a majority.
const BROKER_TIMEOUT: Duration = Duration::from_secs(4);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
/// How long a read of nothing waits for something, at the broker.
const FETCH_WAIT: Duration = Duration::from_millis(100);
/// Most bytes of one fetch, but for a first batch that is larger.
const FETCH_BYTES_MAX: i32 = 128 << 10;
/// ListOffsets: one past the last committed record.
const LATEST: i64 = -1;
/// ListOffsets: the first record there is.
const EARLIEST: i64 = -2;

/// Kafka's error numbers, as far as they matter here.
mod code {
    pub(super) const LOADING: i16 = 14;
    pub(super) const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    pub(super) const NOT_COORDINATOR: i16 = 16;
    pub(super) const ILLEGAL_GENERATION: i16 = 22;
    pub(super) const UNKNOWN_MEMBER: i16 = 25;
    pub(super) const REBALANCING: i16 = 27;
    pub(super) const MEMBER_ID_REQUIRED: i16 = 79;
    /// Errors of a produce after which the records certainly are not in the log: refused before anything was appended. All others
    /// (7 REQUEST_TIMED_OUT, 20 NOT_ENOUGH_REPLICAS_AFTER_APPEND, …) leave it open.
    pub(super) const NOTHING_WRITTEN: [i16; 14] = [2, 3, 5, 6, 10, 17, 19, 21, 42, 45, 47, 59, 74, 87];
    /// A producer of this id must begin anew with another.
    pub(super) const PRODUCER_IS_LOST: [i16; 3] = [45, 47, 59];
}

/// Makes Kafka clients.
#[derive(Clone)]
pub struct KafkaConnector {
    shared: Arc<Shared>,
}

/// What the clients of a run share.
struct Shared {
    /// `host:port` of each broker.
    brokers: Vec<String>,
    places: Vec<Place>,
    /// How large records are made, by their value.
    sizes: fn(Value) -> usize,
    /// What members of groups were told.
    ledger: Ledger,
    retries: Retries,
}

impl Shared {
    fn place(&self, key: Key) -> Result<&Place, String> {
        self.places.get(key.0 as usize).ok_or_else(|| format!("key {} has no partition", key.0))
    }

    fn key_of(&self, topic: &str, partition: i32) -> Option<Key> {
        let is = |place: &Place| place.topic == topic && i32::try_from(place.partition) == Ok(partition);
        self.places.iter().position(is).map(|key| Key(key as u64))
    }
}

impl KafkaConnector {
    /// For these brokers; `places` is indexed by key.
    pub fn new(brokers: Vec<String>, places: Vec<Place>, sizes: fn(Value) -> usize, recorder: Arc<Recorder>) -> Self {
        let (ledger, retries) = (Ledger::new(recorder), Retries::default());
        Self { shared: Arc::new(Shared { brokers, places, sizes, ledger, retries }) }
    }

    /// How often idempotent clients were acknowledged, and sent again.
    pub fn retries(&self) -> Counted {
        self.shared.retries.counted()
    }

    /// What members of groups were told so far.
    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }
}

impl Connector for KafkaConnector {
    type Client = KafkaClient;

    fn connect(&self, broker: usize, idempotent: bool) -> KafkaClient {
        KafkaClient {
            shared: self.shared.clone(),
            brokers: Brokers::new(self.shared.clone(), broker),
            idempotent: idempotent.then(Producer::default),
            member: None,
        }
    }

    fn brokers(&self) -> usize {
        self.shared.brokers.len()
    }
}

/// One client.
pub struct KafkaClient {
    shared: Arc<Shared>,
    brokers: Brokers,
    idempotent: Option<Producer>,
    /// Of a consumer group, while it is subscribed.
    member: Option<Member>,
}

impl KafkaClient {
    /// See [`super::http::PRODUCER_IS_LOST`].
    fn note_lost(&mut self, key: Key, error: i16, why: &str) {
        if code::PRODUCER_IS_LOST.contains(&error) {
            producer::lose(self, key, why);
        }
    }

    /// The values of batches. A checksum that is wrong, and contents that are no value of ours, accuse: nobody sent them.
    fn unpack(&self, key: Key, bytes: Bytes, from: Offset) -> Result<(Records, Vec<String>), String> {
        let accuse =
            |what: &str| self.shared.ledger.accuse(format!("key {} is served with what nobody sent: {what}", key.0));
        let (records, foreign) = batch::decode(bytes, from).inspect_err(|why| accuse(why))?;
        foreign.iter().for_each(|what| accuse(what));
        Ok((records, foreign))
    }

    /// An offset by one of Kafka's special times.
    async fn offset(&mut self, key: Key, time: i64) -> Result<Offset, String> {
        let place = self.shared.place(key)?.clone();
        let partition = ListOffsetsPartition::default()
            .with_partition_index(place.partition as i32)
            .with_current_leader_epoch(-1)
            .with_timestamp(time);
        let topic = ListOffsetsTopic::default().with_name(topic_name(&place.topic)).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        let leader = self.brokers.leader(key).await?;
        let told = self.brokers.ask(&leader, &request, REQUEST_TIMEOUT).await;
        let told = told.map_err(|why| self.lost(key, why.why()))?;
        let found = told.topics.into_iter().flat_map(|topic| topic.partitions).next();
        let found = found.ok_or("an answer without a partition")?;
        if found.error_code != 0 {
            return Err(self.lost(key, format!("error {}", found.error_code)));
        }
        u64::try_from(found.offset).map(Offset).map_err(|_| format!("no error, and offset {}", found.offset))
    }

    /// Sets the offset of a group without members. It is in no ledger.
    pub async fn commit_offset(&mut self, group: &str, key: Key, offset: Offset) -> Sent {
        match Member::outside(group).commit(self, &[(key, offset)]).await {
            Ok(()) => Sent::At(offset),
            Err(NotCommitted { may_have: false, why }) => Sent::Failed(why),
            Err(NotCommitted { may_have: true, why }) => Sent::Unknown(why),
        }
    }

    /// The offset of a group. It is in no ledger.
    pub async fn committed_offset(&mut self, group: &str, key: Key) -> Result<Option<Offset>, String> {
        Ok(Member::outside(group).committed(self, &[key]).await?.get(&key).copied())
    }

    /// The leader did not answer as one.
    fn lost(&mut self, key: Key, why: String) -> String {
        self.brokers.forget(key);
        why
    }
}

fn fetch_request(place: &Place, from: Offset, wait: Duration) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(place.partition as i32)
        .with_current_leader_epoch(-1)
        .with_last_fetched_epoch(-1)
        .with_log_start_offset(-1)
        .with_fetch_offset(from.0 as i64)
        .with_partition_max_bytes(FETCH_BYTES_MAX);
    let topic = FetchTopic::default().with_topic(topic_name(&place.topic)).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(wait.as_millis() as i32)
        .with_min_bytes(1)
        .with_max_bytes(FETCH_BYTES_MAX)
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

impl Produces for KafkaClient {
    fn producer(&mut self) -> Option<&mut Producer> {
        self.idempotent.as_mut()
    }

    fn retries(&self) -> &Retries {
        &self.shared.retries
    }

    fn accuse(&self, what: String) {
        self.shared.ledger.accuse(what);
    }

    async fn ask_for_id(&mut self) -> Result<(i64, i16), String> {
        let request = InitProducerIdRequest::default().with_transactional_id(None).with_producer_id((-1).into());
        let any = self.brokers.any();
        let told = self.brokers.ask(&any, &request, REQUEST_TIMEOUT).await.map_err(NoAnswer::why)?;
        match told.error_code {
            0 => Ok((told.producer_id.0, told.producer_epoch)),
            error => Err(format!("error {error}")),
        }
    }

    async fn attempt(&mut self, batch: &Batch<'_>, by: Option<Sequence>) -> Sent {
        let key = batch.key;
        let place = match self.shared.place(key) {
            Ok(place) => place.clone(),
            Err(why) => return Sent::Failed(why),
        };
        let bytes = match batch::encode(batch.values, self.shared.sizes, by) {
            Ok(bytes) => bytes,
            Err(why) => return Sent::Failed(why),
        };
        let partition = PartitionProduceData::default().with_index(place.partition as i32).with_records(Some(bytes));
        let topic =
            TopicProduceData::default().with_name(topic_name(&place.topic)).with_partition_data(vec![partition]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(BROKER_TIMEOUT.as_millis() as i32)
            .with_topic_data(vec![topic]);
        let leader = match self.brokers.leader(key).await {
            Ok(leader) => leader,
            Err(why) => return Sent::Failed(why),
        };
        let told = match self.brokers.ask(&leader, &request, REQUEST_TIMEOUT).await {
            Ok(told) => told,
            Err(why) => {
                self.brokers.forget(key);
                return match why {
                    NoAnswer::Unsent(why) => Sent::Failed(why),
                    NoAnswer::Unknown(why) => Sent::Unknown(why),
                };
            }
        };
        let found = told.responses.into_iter().flat_map(|topic| topic.partition_responses).next();
        let Some(found) = found else { return Sent::Unknown("an answer without a partition".to_owned()) };
        if found.error_code == 0 {
            return match u64::try_from(found.base_offset) {
                Ok(offset) => Sent::At(Offset(offset)),
                Err(_) => Sent::Unknown(format!("no error, and offset {}", found.base_offset)),
            };
        }
        self.brokers.forget(key);
        let why = format!("error {} {}", found.error_code, found.error_message.as_deref().unwrap_or_default());
        self.note_lost(key, found.error_code, &why);
        match code::NOTHING_WRITTEN.contains(&found.error_code) {
            true => Sent::Failed(why),
            false => Sent::Unknown(why),
        }
    }

    fn look_elsewhere(&mut self) {
        self.brokers.look_elsewhere();
    }
}

impl Client for KafkaClient {
    fn can_condition(&self) -> bool {
        false // Kafka knows no such thing.
    }

    fn can_subscribe(&self) -> bool {
        true
    }

    async fn send(&mut self, key: Key, values: &[Value], at: Option<Offset>) -> Sent {
        if at.is_some() {
            return Sent::Failed("Kafka has no condition on the end of a log".to_owned());
        }
        producer::send(self, &Batch { key, values, at }).await
    }

    async fn fetch(&mut self, key: Key, from: Option<Offset>, linearizable: bool) -> Result<Fetched, String> {
        let end = if linearizable { Some(self.offset(key, LATEST).await?) } else { None };
        let from = match from {
            Some(from) => from,
            None => self.offset(key, EARLIEST).await?,
        };
        // An end before what was read already is claimed as it was told: the checkers will see what is missing.
        if let Some(end) = end.filter(|end| *end <= from) {
            return Ok(Fetched { records: Vec::new(), next: end, end, foreign: Vec::new() });
        }
        let wait = if linearizable { Duration::ZERO } else { FETCH_WAIT };
        let request = fetch_request(self.shared.place(key)?, from, wait);
        let leader = self.brokers.leader(key).await?;
        let told = self.brokers.ask(&leader, &request, REQUEST_TIMEOUT).await;
        let told = told.map_err(|why| self.lost(key, why.why()))?;
        let found = told.responses.into_iter().flat_map(|topic| topic.partitions).next();
        let found = found.filter(|_| told.error_code == 0).ok_or("an answer without a partition")?;
        if found.error_code != 0 {
            return Err(self.lost(key, format!("error {}", found.error_code)));
        }
        let (records, foreign) = self.unpack(key, found.records.unwrap_or_default(), from)?;
        let next = records.last().map_or(from, |(offset, _)| Offset(offset.0 + 1));
        let high_watermark = u64::try_from(found.high_watermark).map_err(|_| "no high watermark")?;
        Ok(Fetched { records, next, end: end.unwrap_or(Offset(high_watermark)), foreign })
    }

    fn use_broker(&mut self, broker: usize) {
        self.brokers.begin_with(broker);
    }

    fn subscribe(&mut self, group: String, keys: Vec<Key>) {
        self.member = Some(Member::new(group, keys));
    }

    async fn poll_group(&mut self) -> FromGroup {
        let Some(mut member) = self.member.take() else { return FromGroup::default() };
        let polled = member.poll(self).await;
        self.member = Some(member);
        polled
    }

    async fn leave_group(&mut self) {
        if let Some(member) = self.member.take() {
            member.leave(self).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Accusations;

    #[test]
    fn an_error_that_leaves_it_open_is_never_taken_for_a_refusal() {
        for open in [-1, 7, 13, 20, 56] {
            assert!(!code::NOTHING_WRITTEN.contains(&open), "{open}");
        }
        assert!(code::PRODUCER_IS_LOST.iter().all(|lost| code::NOTHING_WRITTEN.contains(lost)));
        assert!(code::NOTHING_WRITTEN.contains(&6), "NOT_LEADER_OR_FOLLOWER");
    }

    fn client(accusations: &Accusations) -> KafkaClient {
        KafkaConnector::new(Vec::new(), Vec::new(), |_| 0, accusations.recorder()).connect(0, true)
    }

    #[test]
    fn a_wrong_checksum_and_contents_that_nobody_sent_accuse() {
        let accusations = Accusations::new();
        let client = client(&accusations);
        let unpack = |bytes: Vec<u8>| client.unpack(Key(2), bytes.into(), Offset(0));
        let good = batch::encode(&[Value(1)], |_| 20, None).unwrap().to_vec();
        assert_eq!(unpack(good.clone()).unwrap().0, [(Offset(0), Value(1))]);
        assert_eq!(accusations.told(), Vec::<String>::new());
        let (mut rotten, last) = (good, 8);
        let at = rotten.len() - last;
        rotten[at] ^= 1;
        assert!(unpack(rotten).is_err());
        assert!(unpack(b"no batch at all".to_vec()).is_err());
        let found = accusations.told();
        assert!(
            found.len() == 2 && found[0].starts_with("clients: key 2 is served with what nobody sent: "),
            "{found:?}"
        );
    }

    #[test]
    fn a_producer_that_did_all_as_it_should_and_is_unknown_accuses_once() {
        let accusations = Accusations::new();
        let mut client = client(&accusations);
        for (error, expected) in [(6, 0), (45, 1), (47, 2), (59, 3)] {
            client.idempotent = Some(Producer::new(17, 0));
            client.note_lost(Key(1), error, "error");
            client.note_lost(Key(1), error, "error");
            assert_eq!(accusations.told().len(), expected);
        }
        assert!(accusations.told()[0].contains("producer 17, whose next sequence of key 1 is 0"));
    }

    #[test]
    fn keys_are_found_by_their_places() {
        let place = |topic: &str, partition| Place { topic: topic.to_owned(), partition };
        let dir = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::begin(dir.path()).unwrap());
        let places = vec![place("a", 0), place("a", 1), place("b", 0)];
        let shared = KafkaConnector::new(Vec::new(), places, |_| 0, recorder).shared;
        assert_eq!((shared.key_of("a", 1), shared.key_of("b", 0)), (Some(Key(1)), Some(Key(2))));
        assert_eq!((shared.key_of("b", 1), shared.key_of("a", -1)), (None, None));
    }
}
