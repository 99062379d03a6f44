//! Who may come in at the peers' port, in bytes: the table of `raft/src/transport/handshake.rs` written out by hand.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Cluster, PATIENCE};

const CONTROL: u8 = 1;
const DATA: u8 = 2;
/// Verdicts.
const WELCOME: u8 = 0;
const OTHER_VERSION: u8 = 1;
const OTHER_CLUSTER: u8 = 2;
const OTHER_BROKER: u8 = 3;
const SAME_BROKER: u8 = 4;
const NO_CLUSTER: u8 = 5;

/// What a dialler says of itself.
#[derive(Clone, Copy)]
struct Hello {
    version: u16,
    kind: u8,
    broker: u32,
    target: u32,
    cluster: u128,
}

impl Hello {
    fn bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(b"PONTOONH");
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = self.kind;
        bytes[11] = 1;
        bytes[12..16].copy_from_slice(&self.broker.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.target.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[40..48].copy_from_slice(&77u64.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// What a broker answers to these bytes; `None` if it hangs up.
async fn answered(cluster: &Cluster, bytes: &[u8]) -> Option<[u8; 64]> {
    let mut stream = TcpStream::connect(cluster.peer_address(1)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = [0; 64];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("no answer").ok()?;
    // Whoever is turned away hears nothing more, whatever it says.
    if answer[10] != WELCOME {
        let _ = stream.write_all(&[0; 4096]).await;
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection is still open");
        assert!(rest.is_empty(), "{rest:?}");
    }
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_another_version_or_is_of_another_cluster_is_turned_away_and_the_log_says_why() {
    let cluster = Cluster::start(1).await;
    cluster.create_topic(1, "t", 1).await;
    let (_, described) = cluster.get(1, "/v1/cluster").await;
    let id = u128::from_str_radix(described["cluster_id"].as_str().unwrap(), 16).unwrap();
    let ours = Hello { version: 1, kind: CONTROL, broker: 2, target: 1, cluster: id };
    let foreign = Hello { cluster: id ^ 1, ..ours };
    // Not in its log what has been there for another reason.
    let mut told = 0;
    for (what, hello, verdict, why) in [
        ("an older version", Hello { version: 0, ..ours }, OTHER_VERSION, "another protocol version"),
        ("a newer version", Hello { version: 2, ..ours }, OTHER_VERSION, "another protocol version"),
        ("another cluster, to talk", foreign, OTHER_CLUSTER, "another cluster"),
        ("another cluster, to replicate", Hello { kind: DATA, ..foreign }, OTHER_CLUSTER, "another cluster"),
        ("looking for another broker", Hello { target: 3, ..ours }, OTHER_BROKER, "another broker"),
        ("calling itself as this one", Hello { broker: 1, ..ours }, SAME_BROKER, "the same broker id"),
        ("of no cluster, to replicate", Hello { kind: DATA, cluster: 0, ..ours }, NO_CLUSTER, ""),
        ("one of us", ours, WELCOME, ""),
    ] {
        let answer = answered(&cluster, &hello.bytes()).await.unwrap_or_else(|| panic!("{what}: hung up"));
        assert_eq!(&answer[..8], b"PONTOONW", "{what}");
        assert_eq!(answer[60..], crc32c::crc32c(&answer[..60]).to_le_bytes(), "{what}");
        let version = u16::from_le_bytes([answer[8], answer[9]]);
        let (broker, cluster_id) = (&answer[12..16], u128::from_le_bytes(answer[24..40].try_into().unwrap()));
        assert_eq!((version, answer[10], broker, cluster_id), (1, verdict, &[1, 0, 0, 0][..], id), "{what}");
        if why.is_empty() {
            continue;
        }
        told += 1;
        await_lines(&cluster, "turned a broker away", told).await;
        let log = cluster.log(1);
        let line = log.lines().rfind(|line| line.contains("turned a broker away")).unwrap();
        assert!(line.contains("WARN") && line.contains(why), "{what}: {line}");
        if verdict == OTHER_VERSION {
            assert!(line.contains(&format!("version={}", hello.version)), "{what}: {line}");
        }
        if verdict == OTHER_CLUSTER {
            assert!(line.contains(&format!("{:032x}", hello.cluster)), "{what}: {line}");
        }
    }
    // What is no handshake at all is not answered.
    let mut flipped = ours.bytes();
    flipped[30] ^= 1;
    for bytes in
        [&flipped[..], &[b'x'; 64], b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: a browser, say\r\n\r\n...."]
    {
        assert_eq!(answered(&cluster, bytes).await, None);
    }
    await_lines(&cluster, "turned a connection away", 3).await;
    let (status, body) =
        cluster.post(1, "/v1/topics/t/partitions/0/records", json!({"records": [{"value": "x"}]})).await;
    assert_eq!(status, 200, "{body}");
}

async fn await_lines(cluster: &Cluster, what: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while cluster.log(1).matches(what).count() < count {
        assert!(Instant::now() < deadline, "not {count} times {what:?}:\n{}", cluster.log(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
