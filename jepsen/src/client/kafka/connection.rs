//! One connection to one broker: a request, its answer, one after the other.
//!
//! The codec is the `kafka-protocol` crate, generated from Kafka's own message definitions: what broker and client both got wrong in the same
//! way would go unseen otherwise. It knows no partition and no group, and never tries anything again.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::{
    FetchRequest, FetchResponse, FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse,
    InitProducerIdRequest, InitProducerIdResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse,
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, ProduceRequest,
    ProduceResponse, RequestHeader, ResponseHeader, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: i32 = 64 << 20;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The request certainly never reached the broker.
    Unsent(String),
    /// It may have.
    Unknown(String),
}

impl NoAnswer {
    /// In words.
    pub(super) fn why(self) -> String {
        match self {
            Self::Unsent(why) | Self::Unknown(why) => why,
        }
    }
}

/// A request with its number, the version it is sent in, and its answer.
pub(super) trait Call: Encodable + HeaderVersion + Sync {
    const KEY: i16;
    const VERSION: i16;
    type Answer: Decodable + HeaderVersion;
}

macro_rules! calls {
    ($($request:ident => $answer:ident, $key:literal, $version:literal;)+) => {$(
        impl Call for $request {
            const KEY: i16 = $key;
            const VERSION: i16 = $version;
            type Answer = $answer;
        }
    )+};
}

// The newest versions that name topics by their names.
calls! {
    ProduceRequest => ProduceResponse, 0, 12;
    FetchRequest => FetchResponse, 1, 12;
    ListOffsetsRequest => ListOffsetsResponse, 2, 7;
    MetadataRequest => MetadataResponse, 3, 12;
    OffsetCommitRequest => OffsetCommitResponse, 8, 9;
    OffsetFetchRequest => OffsetFetchResponse, 9, 8;
    FindCoordinatorRequest => FindCoordinatorResponse, 10, 4;
    JoinGroupRequest => JoinGroupResponse, 11, 9;
    HeartbeatRequest => HeartbeatResponse, 12, 4;
    LeaveGroupRequest => LeaveGroupResponse, 13, 5;
    SyncGroupRequest => SyncGroupResponse, 14, 5;
    InitProducerIdRequest => InitProducerIdResponse, 22, 4;
}

/// A connection. After a call without an answer it is of no use any more.
pub(super) struct Connection {
    stream: TcpStream,
    next: i32,
}

impl Connection {
    /// Connects to `host:port`.
    pub(super) async fn open(address: &str) -> Result<Self, NoAnswer> {
        let fail = |why: String| NoAnswer::Unsent(format!("no connection to {address}: {why}"));
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                Ok(Self { stream, next: 0 })
            }
            Ok(Err(error)) => Err(fail(error.to_string())),
            Err(_) => Err(fail("it takes too long".to_owned())),
        }
    }

    /// Asks and waits for the answer, at most `patience`.
    pub(super) async fn call<C: Call>(&mut self, request: &C, patience: Duration) -> Result<C::Answer, NoAnswer> {
        self.next = self.next.wrapping_add(1);
        let id = self.next;
        let frame = frame(request, id).map_err(NoAnswer::Unsent)?;
        let exchange = async {
            self.stream.write_all(&frame).await.map_err(|error| error.to_string())?;
            let length = self.stream.read_i32().await.map_err(|error| error.to_string())?;
            if !(4..=ANSWER_BYTES_MAX).contains(&length) {
                return Err(format!("an answer of {length} bytes"));
            }
            let mut bytes = vec![0; length as usize];
            self.stream.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
            answer::<C>(bytes.into(), id)
        };
        match timeout(patience, exchange).await {
            Ok(done) => done.map_err(NoAnswer::Unknown),
            Err(_) => Err(NoAnswer::Unknown(format!("no answer within {patience:?}"))),
        }
    }
}

fn frame<C: Call>(request: &C, id: i32) -> Result<Bytes, String> {
    let header = RequestHeader::default()
        .with_request_api_key(C::KEY)
        .with_request_api_version(C::VERSION)
        .with_correlation_id(id)
        .with_client_id(Some(StrBytes::from_static_str("jepsen")));
    let mut bytes = BytesMut::new();
    bytes.put_i32(0);
    header.encode(&mut bytes, C::header_version(C::VERSION)).map_err(|error| error.to_string())?;
    request.encode(&mut bytes, C::VERSION).map_err(|error| error.to_string())?;
    let length = i32::try_from(bytes.len() - 4).map_err(|error| error.to_string())?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes.freeze())
}

fn answer<C: Call>(mut bytes: Bytes, id: i32) -> Result<C::Answer, String> {
    let header = ResponseHeader::decode(&mut bytes, C::Answer::header_version(C::VERSION));
    let header = header.map_err(|error| format!("an answer that is none: {error}"))?;
    if header.correlation_id != id {
        return Err(format!("the answer to request {}, not to {id}", header.correlation_id));
    }
    let answer =
        C::Answer::decode(&mut bytes, C::VERSION).map_err(|error| format!("an answer that is none: {error}"))?;
    if bytes.has_remaining() {
        return Err(format!("an answer with {} bytes too many", bytes.remaining()));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_framed_as_kafka_does() {
        let bytes = frame(&HeartbeatRequest::default(), 7).unwrap();
        assert_eq!(bytes[..14], [0, 0, 0, bytes.len() as u8 - 4, 0, 12, 0, 4, 0, 0, 0, 7, 0, 6]);
    }

    #[test]
    fn answers_to_something_else_and_longer_ones_are_none() {
        let good = [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 27, 0];
        let read = |bytes: &[u8]| answer::<HeartbeatRequest>(Bytes::copy_from_slice(bytes), 7);
        assert_eq!(read(&good).unwrap().error_code, 27);
        assert!(read(&[&good[..], &[0]].concat()).unwrap_err().contains("1 bytes too many"));
        assert!(read(&good[..good.len() - 3]).unwrap_err().contains("none"));
        assert!(answer::<HeartbeatRequest>(Bytes::copy_from_slice(&good), 8).unwrap_err().contains("request 7"));
    }

    #[tokio::test]
    async fn a_refused_connection_certainly_changed_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert!(matches!(Connection::open(&address).await, Err(NoAnswer::Unsent(_))));
    }

    #[tokio::test]
    async fn a_connection_that_breaks_leaves_it_unknown() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
        let mut connection = Connection::open(&address).await.unwrap();
        server.await.unwrap();
        let told = connection.call(&HeartbeatRequest::default(), Duration::from_secs(5)).await;
        assert!(matches!(told, Err(NoAnswer::Unknown(_))), "{told:?}");
    }
}
