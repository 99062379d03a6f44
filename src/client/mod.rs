//! A client of the HTTP API: several servers, failover among them, and repetition only where it is safe ([`call`]).

mod call;

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;

use self::call::{ATTEMPT, Again, Call, read};
pub(crate) use self::call::{chain, refused};
use crate::api::fetched::FetchAnswer;
use crate::api::groups::{GroupDescription, GroupList};
use crate::api::{
    self, AlterTopic, ClusterDescription, CreateTopic, ErrorBody, OffsetsAnswer, ProduceAnswer, ProducerAnswer,
    TopicDescription, TopicList,
};
use crate::error::WriteOutcome;

/// Shorter than the server's `limits.header_timeout_ms`.
const IDLE: Duration = Duration::from_secs(15);

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// A server's address makes no sense; nothing was sent.
    #[error("{0}")]
    Address(String),
    /// No server could be reached, or none answered a read.
    #[error("no server can be reached: {0}")]
    Unreachable(String),
    /// A server refused.
    #[error("{} ({}): {}", .body.error, .status, .body.message)]
    Refused {
        /// HTTP's status.
        status: u16,
        /// What it said.
        body: ErrorBody,
    },
    /// The request was sent and no answer came: it may have happened.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The answer was not understood.
    #[error("{0}")]
    Protocol(String),
}

impl ClientError {
    /// Whether the write may have happened.
    pub fn outcome(&self) -> WriteOutcome {
        match self {
            Self::Address(_) | Self::Unreachable(_) => WriteOutcome::None,
            Self::Refused { body, .. } => body.outcome,
            Self::Unknown(_) | Self::Protocol(_) => WriteOutcome::Unknown,
        }
    }

    /// The error's code, if a server refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { body, .. } => Some(&body.error),
            _ => None,
        }
    }
}

/// What makes a produce safe to repeat: who sends it, and which of their batches it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The producer.
    pub producer: ProducerAnswer,
    /// The sequence of the batch's first record, per partition.
    pub sequence: i32,
}

impl Stamp {
    /// The sequence of the batch after one of `count` records: after 2^31-1 comes 0.
    pub fn next_sequence(sequence: i32, count: u32) -> i32 {
        ((i64::from(sequence) + i64::from(count)) & i64::from(i32::MAX)) as i32
    }
}

/// A fetch.
#[derive(Clone, Debug)]
pub struct FetchRequest<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: u32,
    /// A number, `earliest`, `latest` or `timestamp:MS`.
    pub offset: &'a str,
    /// About how many bytes at most.
    pub bytes_max: usize,
    /// How long to wait for records if there are none.
    pub wait: Duration,
}

/// A client. Cheap to share by reference; connections are pooled.
pub struct Client {
    servers: Vec<String>,
    /// Which server is asked next: the one that answered last.
    at: AtomicUsize,
    http: reqwest::Client,
    patience: Duration,
    /// Hears of a request that takes long, once until there is an answer again.
    tell: Option<fn(&str)>,
    told: AtomicBool,
}

impl Client {
    /// For these servers, `http://host:port` each (the scheme may be left out). A request is tried for at most `patience`.
    pub fn new(servers: &str, patience: Duration) -> Result<Self, ClientError> {
        let servers = self::servers(servers)?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(2))
            .pool_idle_timeout(IDLE)
            .build()
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        Ok(Self { servers, at: AtomicUsize::new(0), http, patience, tell: None, told: AtomicBool::new(false) })
    }

    /// Has `tell` told whom a request waits for and for how long, once it has waited for some seconds.
    pub fn telling(self, tell: fn(&str)) -> Self {
        Self { tell: Some(tell), ..self }
    }

    /// The servers, `http://host:port` each.
    pub fn servers(&self) -> &[String] {
        &self.servers
    }

    /// How long a request is tried.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Creates a topic.
    pub async fn create_topic(&self, topic: &CreateTopic) -> Result<TopicDescription, ClientError> {
        self.call(Call::new(Method::POST, "/v1/topics".into()).within(self.patience).json(topic)?).await
    }

    /// All topics.
    pub async fn topics(&self) -> Result<Vec<TopicDescription>, ClientError> {
        let list: TopicList = self.call(Call::new(Method::GET, "/v1/topics".into())).await?;
        Ok(list.topics)
    }

    /// One topic.
    pub async fn topic(&self, name: &str) -> Result<TopicDescription, ClientError> {
        self.call(Call::new(Method::GET, topic_path(name))).await
    }

    /// Changes a topic. Repeating the same change is the same change.
    pub async fn alter_topic(&self, name: &str, change: &AlterTopic) -> Result<TopicDescription, ClientError> {
        let call = Call::new(Method::PATCH, topic_path(name)).again(Again::Safe).within(self.patience);
        self.call(call.json(change)?).await
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        self.answer(&Call::new(Method::DELETE, topic_path(name)).within(self.patience)).await.map(drop)
    }

    /// A new producer. An attempt too many costs an unused number.
    pub async fn create_producer(&self) -> Result<ProducerAnswer, ClientError> {
        self.call(Call::new(Method::POST, "/v1/producers".into()).again(Again::Free).within(ATTEMPT)).await
    }

    /// Produces one batch, with `acks=all`. `body` is of `content_type`.
    pub async fn produce(
        &self,
        topic: &str,
        partition: u32,
        content_type: &str,
        body: Bytes,
        stamp: Option<Stamp>,
    ) -> Result<ProduceAnswer, ClientError> {
        let path = format!("{}/records", partition_path(topic, partition));
        let mut call = Call::new(Method::POST, path).within(self.patience).header("content-type", content_type);
        if let Some(Stamp { producer, sequence }) = stamp {
            call = call
                .again(Again::Safe)
                .within(ATTEMPT)
                .header(api::PRODUCER_ID, producer.producer_id)
                .header(api::PRODUCER_EPOCH, producer.producer_epoch)
                .header(api::PRODUCER_SEQUENCE, sequence);
        }
        self.call(call.body(body)).await
    }

    /// Fetches records.
    pub async fn fetch(&self, fetch: &FetchRequest<'_>) -> Result<FetchAnswer, ClientError> {
        let path = format!(
            "{}/records?offset={}&max_bytes={}&max_wait_ms={}",
            partition_path(fetch.topic, fetch.partition),
            fetch.offset,
            fetch.bytes_max,
            fetch.wait.as_millis()
        );
        let call = Call::new(Method::GET, path).within(ATTEMPT).waiting(fetch.wait);
        let answer = self.answer(&call).await?;
        let topic_id = answer.headers.get(api::TOPIC_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        Ok(FetchAnswer { topic_id, ..read(&call, &answer)? })
    }

    /// A partition's offsets, which cover everything acknowledged before the call.
    pub async fn offsets(&self, topic: &str, partition: u32) -> Result<OffsetsAnswer, ClientError> {
        let path = format!("{}/offsets?consistency=linearizable", partition_path(topic, partition));
        self.call(Call::new(Method::GET, path).within(ATTEMPT)).await
    }

    /// The cluster.
    pub async fn cluster(&self) -> Result<ClusterDescription, ClientError> {
        self.call(Call::new(Method::GET, "/v1/cluster".into())).await
    }

    /// Every consumer group.
    pub async fn groups(&self) -> Result<GroupList, ClientError> {
        self.call(Call::new(Method::GET, "/v1/groups".into())).await
    }

    /// A consumer group: its members, and how far it has read.
    pub async fn group(&self, name: &str) -> Result<GroupDescription, ClientError> {
        // A dot or two would be another path, encoded or not.
        if name.contains('/') || matches!(name, "." | "..") {
            return Err(ClientError::Protocol("a path cannot have its name; Kafka's own clients describe it".into()));
        }
        self.call(Call::new(Method::GET, format!("/v1/groups/{}", encode(name))).within(ATTEMPT)).await
    }
}

/// The servers of a list separated by commas, each as `http://host:port`.
pub fn servers(list: &str) -> Result<Vec<String>, ClientError> {
    let named = list.split(',').map(str::trim).filter(|named| !named.is_empty());
    let servers = named.map(server).collect::<Result<Vec<_>, _>>()?;
    if servers.is_empty() {
        return Err(ClientError::Address("no server is named".into()));
    }
    Ok(servers)
}

fn server(named: &str) -> Result<String, ClientError> {
    let wrong = |why: &str| ClientError::Address(format!("server {named:?}: {why}"));
    let (scheme, rest) = named.split_once("://").unwrap_or(("http", named));
    match scheme.to_ascii_lowercase().as_str() {
        "http" => {}
        "https" => return Err(wrong("Pontoon does not speak TLS; an address is http://host:port")),
        _ => return Err(wrong("an address is http://host:port")),
    }
    let url = reqwest::Url::parse(&format!("http://{rest}")).map_err(|error| wrong(&error.to_string()))?;
    let more = url.path() != "/" || url.query().is_some() || url.fragment().is_some() || rest.contains('@');
    if more {
        Err(wrong("an address is http://host:port and nothing more"))
    } else {
        Ok(format!("http://{}", url.authority()))
    }
}

fn topic_path(name: &str) -> String {
    format!("/v1/topics/{}", encode(name))
}

fn partition_path(topic: &str, partition: u32) -> String {
    format!("{}/partitions/{partition}", topic_path(topic))
}

/// Percent-encodes what is not plain in a path; the server decodes once.
fn encode(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that plays back one answer a connection; `None` closes it after reading the request.
    async fn server(answers: Vec<Option<(u16, &'static str)>>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 1 << 16];
                let read = stream.read(&mut buffer).await.unwrap();
                requests.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
                if let Some((status, body)) = answer {
                    let length = body.len();
                    let text =
                        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                    stream.write_all(text.as_bytes()).await.unwrap();
                }
            }
            requests
        });
        (address, task)
    }

    const PRODUCED: &str = r#"{"topic":"t","partition":0,"base_offset":5,"last_offset":5,"leader_epoch":1}"#;
    const NO_LEADER: &str =
        r#"{"error":"NO_LEADER","message":"m","retriable":true,"outcome":"none","retry_after_ms":1}"#;
    const UNKNOWN: &str = r#"{"error":"OUTCOME_UNKNOWN","message":"m","retriable":true,"outcome":"unknown"}"#;
    const FULL: &str = r#"{"error":"UNKNOWN_TOPIC","message":"no topic t","retriable":false,"outcome":"none"}"#;

    fn stamp() -> Option<Stamp> {
        Some(Stamp { producer: ProducerAnswer { producer_id: 7, producer_epoch: 0 }, sequence: 3 })
    }

    async fn produce(servers: &str, stamp: Option<Stamp>) -> Result<ProduceAnswer, ClientError> {
        let client = Client::new(servers, Duration::from_secs(5)).unwrap();
        client.produce("t", 0, "text/plain", Bytes::from_static(b"x"), stamp).await
    }

    #[tokio::test]
    async fn what_had_no_effect_is_tried_elsewhere() {
        let (busy, _) = server(vec![Some((503, NO_LEADER))]).await;
        let (good, task) = server(vec![Some((200, PRODUCED))]).await;
        // Port 1 refuses connections.
        let answer = produce(&format!("127.0.0.1:1,{busy},{good}"), None).await.unwrap();
        assert_eq!(answer.base_offset, 5);
        assert!(task.await.unwrap()[0].contains("records?timeout_ms="));
    }

    #[tokio::test]
    async fn what_may_have_happened_is_repeated_only_with_sequences() {
        for first in [None, Some((504, UNKNOWN))] {
            let (one, _) = server(vec![first]).await;
            let error = produce(&one, None).await.unwrap_err();
            assert_eq!(error.outcome(), WriteOutcome::Unknown, "{error}");

            let (one, _) = server(vec![first]).await;
            let (two, task) = server(vec![Some((200, PRODUCED))]).await;
            produce(&format!("{one},{two}"), stamp()).await.unwrap();
            let request = task.await.unwrap().remove(0);
            assert!(request.contains("producer-id: 7") && request.contains("producer-sequence: 3"), "{request}");
        }
    }

    #[tokio::test]
    async fn an_earlier_unknown_outcome_is_not_forgotten() {
        let (one, _) = server(vec![None]).await;
        let (two, _) = server(vec![Some((404, FULL))]).await;
        let error = produce(&format!("{one},{two}"), stamp()).await.unwrap_err();
        assert_eq!((error.code(), error.outcome()), (Some("UNKNOWN_TOPIC"), WriteOutcome::Unknown));
    }

    #[tokio::test]
    async fn a_refusal_for_good_is_final() {
        let (one, task) = server(vec![Some((404, FULL))]).await;
        let error = produce(&one, stamp()).await.unwrap_err();
        assert_eq!((error.code(), error.outcome()), (Some("UNKNOWN_TOPIC"), WriteOutcome::None));
        assert_eq!(task.await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let client = Client::new("127.0.0.1:1", Duration::from_millis(300)).unwrap();
        let error = client.topics().await.unwrap_err();
        assert!(matches!(&error, ClientError::Unreachable(why) if why.contains("127.0.0.1:1")), "{error}");
    }

    #[tokio::test]
    async fn every_server_that_was_tried_is_named_unless_one_said_why() {
        let client = Client::new("127.0.0.1:1,127.0.0.1:2", Duration::from_millis(300)).unwrap();
        let error = client.topics().await.unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:1") && error.to_string().contains("127.0.0.1:2"), "{error}");

        let (busy, _) = server(vec![Some((503, NO_LEADER)); 50]).await;
        let client = Client::new(&format!("127.0.0.1:1,{busy},127.0.0.1:2"), Duration::from_millis(300)).unwrap();
        let error = client.topics().await.unwrap_err();
        assert_eq!(error.code(), Some("NO_LEADER"), "{error}");
    }

    #[tokio::test]
    async fn what_came_of_asking_for_a_producer_is_never_unknown() {
        let (one, task) = server(vec![Some((504, UNKNOWN)), None]).await;
        let client = Client::new(&one, Duration::from_millis(300)).unwrap();
        let error = client.create_producer().await.unwrap_err();
        assert_eq!(error.outcome(), WriteOutcome::None, "{error}");
        assert!(task.await.unwrap()[0].contains("POST /v1/producers?timeout_ms="));
    }

    /// A server that sends a list of no topics by the byte, with so long a pause before each, and ends or stops after so many.
    async fn slow(pause: Duration, bytes: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                let body = r#"{"topics":[]}"#;
                let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).await.unwrap();
                for byte in body.bytes().take(bytes) {
                    tokio::time::sleep(pause).await;
                    stream.write_all(&[byte]).await.unwrap();
                }
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 1]).await;
                });
            }
        });
        address
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_long_while_it_comes_and_not_once_it_stops() {
        let patience = Duration::from_secs(9);
        let slow_link = Client::new(&slow(Duration::from_secs(8), 100).await, patience).unwrap();
        assert_eq!(slow_link.topics().await.unwrap(), []);
        let stuck = Client::new(&slow(Duration::ZERO, 7).await, patience).unwrap();
        let error = stuck.topics().await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Unreachable(why) if why.contains("nothing more of its answer")),
            "{error}"
        );
    }

    #[test]
    fn a_servers_address_is_a_host_and_a_port() {
        for (named, known) in [
            ("127.0.0.1:8090", "http://127.0.0.1:8090"),
            ("http://a:1/", "http://a:1"),
            ("HTTP://[::1]:8090", "http://[::1]:8090"),
        ] {
            assert_eq!(servers(named).unwrap(), [known]);
        }
        for wrong in ["", " , ", "ftp://x", "https://x:1", ":notaport", "a:99999", "http://", "http://a:1/v1", "u@a:1"]
        {
            assert!(matches!(servers(wrong), Err(ClientError::Address(_))), "{wrong}");
        }
    }

    #[test]
    fn sequences_wrap_at_two_to_the_31st() {
        assert_eq!(Stamp::next_sequence(0, 10), 10);
        assert_eq!(Stamp::next_sequence(i32::MAX, 1), 0);
        assert_eq!(Stamp::next_sequence(i32::MAX - 1, 5), 3);
    }

    #[test]
    fn names_are_encoded_for_a_path() {
        assert_eq!(topic_path("a b/é"), "/v1/topics/a%20b%2F%C3%A9");
        assert_eq!(topic_path("a.b_c-1"), "/v1/topics/a.b_c-1");
    }
}
