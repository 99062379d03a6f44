//! From a frame to its handler: headers read, the API and version found, the answer put into a frame.
//!
//! ApiVersions has rules of its own: a version that is not served is answered in version 0, with error 35, so that the client
//! can choose another; and its response's header is never flexible, since the client does not know yet what we speak.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::trace;

use super::connection::{Client, Shares, Turn};
use super::group_answers::SMALL_BYTES;
use super::messages::{APIS, Api, ApiVersion, ApiVersionsResponse, Request, Response};
use super::wire::{Field, Malformed, Reader, Writer};
use super::{Door, ErrorCode, configs, fetch, group_offsets, groups, metadata, offsets, produce, topics};

const API_VERSIONS: i16 = 18;

/// A request's header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) api: &'static Api,
    pub(super) version: i16,
    pub(super) correlation_id: i32,
    pub(super) client_id: Option<String>,
}

/// What a frame holds.
pub(super) enum Incoming {
    /// A request that is served, and how many bytes of memory it takes beside its frame.
    Request(Box<(Header, Request)>, usize, Instant),
    /// ApiVersions in a version of the future.
    FutureApiVersions { correlation_id: i32 },
    /// Something else.
    Malformed(String),
}

impl Incoming {
    /// Whether it may be started while Produces before it are under way, and have others behind it that are: all its batches are
    /// proposed before theirs, if there are not too many.
    pub(super) fn may_follow(&self) -> bool {
        let Self::Request(request, ..) = self else { return false };
        let Request::Produce(produce) = &request.1 else { return false };
        produce.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>() <= produce::PRODUCE_SIDE_BY_SIDE
    }

    /// Whether it shares its frame's memory: record batches do, all else is copied.
    pub(super) fn keeps_frame(&self) -> bool {
        matches!(self, Self::Request(request, ..) if matches!(request.1, Request::Produce(_)))
    }

    /// Bytes of memory that it takes beside its frame.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Request(_, memory, _) => *memory,
            Self::FutureApiVersions { .. } | Self::Malformed(_) => 0,
        }
    }
}

/// An answer's bytes, and what it holds of the budgets until they are written.
pub(super) struct Answer {
    pub(super) pieces: Vec<Bytes>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) shares: Option<Shares>,
}

impl Answer {
    fn new(pieces: Vec<Bytes>, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { pieces, permit, shares: None }
    }

    /// With its request's shares, if nothing else counts it and it is large. It repeats what its request says, mostly, and who asks need
    /// not read it.
    pub(super) fn holding(self, shares: Shares) -> Self {
        let bytes: usize = self.pieces.iter().map(Bytes::len).sum();
        let uncounted = self.permit.is_none() && bytes > SMALL_BYTES;
        Self { shares: uncounted.then_some(shares), ..self }
    }
}

/// What became of a request.
pub(super) enum Done {
    /// This is the answer.
    Answer(Answer),
    /// It wants none.
    Silence,
    /// It was not understood: the connection must end.
    Malformed(String),
    /// There is no answer: the connection must end.
    Close(String),
}

/// What a handler comes back with.
pub(super) enum Handled {
    /// A response.
    Response(Response),
    /// A response that holds a share of the budget.
    Holding(Response, OwnedSemaphorePermit),
    /// Nothing is to be said (`acks=0`).
    Silence,
    /// Something is wrong that no response could say (`acks=0` has none): the client sees it by the closed connection.
    Close(String),
}

impl From<Response> for Handled {
    fn from(response: Response) -> Self {
        Self::Response(response)
    }
}

/// Reads a frame.
pub(super) fn parse(frame: Bytes) -> Incoming {
    match read(frame) {
        Ok(incoming) => incoming,
        Err(error) => Incoming::Malformed(error.0),
    }
}

fn read(frame: Bytes) -> Result<Incoming, Malformed> {
    let mut reader = Reader::new(frame, 0, false);
    let key = i16::read(&mut reader).map_err(|error| error.within("api key"))?;
    let version = i16::read(&mut reader).map_err(|error| error.within("api version"))?;
    let correlation_id = i32::read(&mut reader).map_err(|error| error.within("correlation id"))?;
    let api = Api::of(key).ok_or_else(|| Malformed(format!("API {key} version {version} is not served")))?;
    if !api.serves(version) {
        if key == API_VERSIONS {
            return Ok(Incoming::FutureApiVersions { correlation_id });
        }
        return Err(Malformed(format!(
            "{} version {version} is not served ({} to {} are)",
            api.name, api.min, api.max
        )));
    }
    // In every version the client's id is an old-style string; what follows it is not.
    let client_id = Option::<String>::read(&mut reader).map_err(|error| error.within("client id"))?;
    reader.flexible = api.is_flexible(version);
    reader.tagged(|_, _| Ok(false)).map_err(|error| error.within("request header"))?;
    let left = reader.remaining();
    let body = reader.take(left)?;
    drop(reader); // Nothing may share the frame with its record batches: they are taken over, not copied.
    let read = Request::read_measured(api, version, body);
    let (request, memory) = read.map_err(|error| error.within(&format!("{} version {version}", api.name)))?;
    let memory = memory + client_id.as_ref().map_or(0, String::len);
    let header = Header { api, version, correlation_id, client_id };
    Ok(Incoming::Request(Box::new((header, request)), memory, Instant::now()))
}

/// Has a request answered.
pub(super) async fn handle(door: Arc<Door>, client: Client, incoming: Incoming, turn: Turn) -> Done {
    let (header, request, began) = match incoming {
        Incoming::Request(request, _, began) => (request.0, request.1, began),
        Incoming::FutureApiVersions { correlation_id } => {
            let pieces =
                encode_as(0, false, correlation_id, false, &api_versions(ErrorCode::UnsupportedVersion).into());
            return Done::Answer(Answer::new(pieces, None));
        }
        Incoming::Malformed(why) => return Done::Malformed(why),
    };
    let (api, version) = (header.api, header.version);
    trace!(peer = %client.peer, client = header.client_id, api = api.name, version, "a Kafka request");
    let handled = route(&door, &client, &header, request, turn).await;
    door.metrics.answered(api.name, began.elapsed());
    let (response, permit) = match handled {
        Handled::Response(response) => (response, None),
        Handled::Holding(response, permit) => (response, Some(permit)),
        Handled::Silence => return Done::Silence,
        Handled::Close(why) => return Done::Close(why),
    };
    let flexible = api.is_flexible(version);
    let pieces = encode_as(version, flexible, header.correlation_id, flexible && api.key != API_VERSIONS, &response);
    Done::Answer(Answer::new(pieces, permit))
}

async fn route(door: &Arc<Door>, client: &Client, header: &Header, request: Request, turn: Turn) -> Handled {
    let version = header.version;
    match request {
        Request::Produce(request) => produce::produce(door, request, version, turn).await,
        Request::Fetch(request) => fetch::fetch(door, client, request, version).await,
        Request::ListOffsets(request) => offsets::list(door, client, request, version).await,
        Request::Metadata(request) => metadata::metadata(door, request, version).await,
        Request::OffsetCommit(request) => group_offsets::commit(door, request).await.into(),
        Request::OffsetFetch(request) => client.handle_while_there(group_offsets::fetch(door, request, version)).await,
        Request::FindCoordinator(request) => groups::find_coordinator(door, request, version).await.into(),
        Request::JoinGroup(request) => groups::join(door, client, header.client_id.clone(), request, version).await,
        Request::Heartbeat(request) => groups::heartbeat(door, request).await.into(),
        Request::LeaveGroup(request) => groups::leave(door, request, version).await.into(),
        Request::SyncGroup(request) => groups::sync(door, client, request).await,
        Request::DescribeGroups(request) => client.handle_while_there(groups::describe(door, request)).await,
        Request::ListGroups(request) => groups::list(door, request).await.into(),
        Request::DeleteGroups(request) => groups::delete(door, request).await.into(),
        Request::OffsetDelete(request) => group_offsets::delete_offsets(door, request).await.into(),
        Request::AlterConfigs(request) => client.while_there(configs::alter(door, request)).await,
        Request::IncrementalAlterConfigs(request) => {
            client.while_there(configs::alter_incrementally(door, request)).await
        }
        Request::DeleteRecords(request) => client.while_there(topics::delete_records(door, request)).await,
        Request::ApiVersions(_) => Response::from(api_versions(ErrorCode::None)).into(),
        Request::CreateTopics(request) => client.handle_while_there(topics::create(door, request)).await,
        Request::DeleteTopics(request) => client.while_there(topics::delete(door, request, version)).await,
        Request::InitProducerId(request) => produce::init_producer_id(door, request).await.into(),
        Request::OffsetForLeaderEpoch(request) => client.while_there(offsets::for_leader_epoch(door, request)).await,
        Request::DescribeConfigs(request) => client.handle_while_there(configs::describe(door, request)).await,
        Request::CreatePartitions(request) => client.while_there(topics::create_partitions(door, request)).await,
        Request::DescribeCluster(request) => metadata::describe_cluster(door, request).await,
    }
}

fn api_versions(error: ErrorCode) -> ApiVersionsResponse {
    let listed = |api: &Api| ApiVersion { api_key: api.key, min_version: api.advertised_min, max_version: api.max };
    ApiVersionsResponse {
        error_code: error.number(),
        api_keys: APIS.iter().map(listed).collect(),
        ..Default::default()
    }
}

impl From<ApiVersionsResponse> for Response {
    fn from(response: ApiVersionsResponse) -> Self {
        Self::ApiVersions(response)
    }
}

/// A response as a frame.
fn encode_as(version: i16, flexible: bool, correlation_id: i32, tags: bool, response: &Response) -> Vec<Bytes> {
    let mut writer = Writer::new(version, flexible);
    response.write(&mut writer);
    let body = writer.finish();
    let length = 4 + usize::from(tags) + body.iter().map(Bytes::len).sum::<usize>();
    let mut head = BytesMut::with_capacity(9);
    head.put_i32(length as i32);
    head.put_i32(correlation_id);
    if tags {
        head.put_u8(0);
    }
    std::iter::once(head.freeze()).chain(body).collect()
}
