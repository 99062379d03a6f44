//! What the bodies of messages between brokers mean: Raft's requests and answers, in Pontoon's own forms.
//!
//! Control bodies are [`crate::codec`]'s; an `Append` is `u16` length and codec of [`AppendHead`], then its entries as log
//! frames, each checked on receipt; a `Snapshot` is `u32` length and codec of [`SnapshotHead`], then its bytes; an
//! `Answer` is one byte of verdict, then what was asked for, or why not. Whatever a peer sends is checked here before
//! openraft, which trusts its callers, sees it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::storage::SnapshotMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::wire::WireError;
use super::{
    AppendEntriesRequest, AppendEntriesResponse, AppendResult, FramesRequest, Refusal, Snapshot, SnapshotResponse,
    Target, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use crate::codec;
use crate::log::entry;
use crate::log::frame::{FRAME_HEADER_BYTES, Frame};
use crate::types::{Entry, GroupId, LogId, Membership, ReplicaId, StoredMembership, Vote, repr};

type StreamAppendError = openraft::raft::StreamAppendError<crate::types::TypeConfig>;
type TransferLeaderError = openraft::raft::TransferLeaderError<crate::types::TypeConfig>;

/// Most entries one `Append` may hold; openraft sends at most 4096.
const ENTRIES_MAX: u32 = 16 << 10;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct To(GroupId, ReplicaId);

impl From<Target> for To {
    fn from(target: Target) -> Self {
        Self(target.group, target.replica)
    }
}

impl From<To> for Target {
    fn from(To(group, replica): To) -> Self {
        Self { group, replica }
    }
}

fn body<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, WireError> {
    codec::decode(bytes).map_err(|error| WireError::Body(what, error.to_string()))
}

fn id(id: Option<LogId>) -> Option<repr::LogId> {
    id.map(Into::into)
}

fn un_id(id: Option<repr::LogId>) -> Option<LogId> {
    id.map(Into::into)
}

/// The body of an `Open`.
pub(crate) fn encode_open(to: Target) -> Bytes {
    codec::encode(&To::from(to)).into()
}

/// Reads an `Open`.
pub(crate) fn decode_open(bytes: &[u8]) -> Result<Target, WireError> {
    body::<To>("open", bytes).map(Into::into)
}

/// What stands before the entries of an `Append`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct AppendHead {
    vote: repr::Vote,
    prev: Option<repr::LogId>,
    commit: Option<repr::LogId>,
    entries: u32,
}

/// An `Append`'s body in pieces: payloads are shared, not copied. Fails only on an entry that is not stored.
pub(crate) fn encode_append(request: &AppendEntriesRequest) -> Result<Vec<Bytes>, entry::EntryError> {
    let head = codec::encode(&AppendHead {
        vote: request.vote.into(),
        prev: id(request.prev_log_id),
        commit: id(request.leader_commit),
        entries: request.entries.len() as u32,
    });
    let frames = request.entries.iter().map(|e| entry::to_frame(e, 0)).collect::<Result<Vec<_>, _>>()?;
    let mut small = BytesMut::with_capacity(2 + head.len() + frames.len() * FRAME_HEADER_BYTES);
    small.put_u16_le(head.len() as u16);
    small.put_slice(&head);
    for frame in &frames {
        small.put_slice(&frame.header.encode());
    }
    let mut small = small.freeze();
    let mut pieces = Vec::with_capacity(2 * frames.len() + 1);
    let mut head_bytes = 2 + head.len();
    for frame in frames {
        pieces.push(small.split_to(head_bytes + FRAME_HEADER_BYTES));
        pieces.push(frame.payload);
        head_bytes = 0;
    }
    pieces.push(small);
    pieces.retain(|piece| !piece.is_empty());
    Ok(pieces)
}

/// Reads an `Append`: every frame's checksums, and that the entries follow each other and `prev`.
pub(crate) fn decode_append(mut bytes: Bytes) -> Result<AppendEntriesRequest, WireError> {
    let malformed = |why: String| WireError::Body("append", why);
    if bytes.len() < 2 {
        return Err(malformed("no head".into()));
    }
    let head_bytes = usize::from(bytes.get_u16_le());
    if bytes.len() < head_bytes {
        return Err(malformed(format!("head of {head_bytes} bytes is cut short")));
    }
    let head: AppendHead = body("append", &bytes.split_to(head_bytes))?;
    if head.entries > ENTRIES_MAX || head.entries as usize > bytes.len() / FRAME_HEADER_BYTES {
        return Err(malformed(format!("{} entries in {} bytes", head.entries, bytes.len())));
    }
    let mut entries = Vec::<Entry>::with_capacity(head.entries as usize);
    let mut last = head.prev;
    for _ in 0..head.entries {
        let frame = Frame::decode(&mut bytes).map_err(|error| malformed(error.to_string()))?;
        let here = repr::LogId(frame.header.term, frame.header.index);
        let follows = match last {
            None => here.1 == 0,
            Some(last) => last.1.checked_add(1) == Some(here.1) && here.0 >= last.0,
        };
        if !follows || here.0 > head.vote.0 {
            return Err(malformed(format!("entry {here:?} after {last:?} in term {}", head.vote.0)));
        }
        last = Some(here);
        entries.push(entry::from_frame(frame).map_err(|error| malformed(error.to_string()))?);
    }
    if !bytes.is_empty() {
        return Err(malformed(format!("{} trailing bytes", bytes.len())));
    }
    Ok(AppendEntriesRequest {
        vote: head.vote.into(),
        prev_log_id: un_id(head.prev),
        leader_commit: un_id(head.commit),
        entries,
    })
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Refused {
    NotHere,
    Unable(String),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotHere => Self::NotHere,
            Refusal::Unable(why) => Self::Unable(why.chars().take(1024).collect()),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotHere => Self::NotHere,
            Refused::Unable(why) => Self::Unable(why),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Appended {
    Matching(Option<repr::LogId>),
    Conflict(repr::LogId),
    HigherVote(repr::Vote),
    Refused(Refused),
}

/// The body of an `Appended`.
pub(crate) fn encode_appended(result: Result<AppendResult, Refusal>) -> Bytes {
    let appended = match result {
        Ok(Ok(matching)) => Appended::Matching(id(matching)),
        Ok(Err(StreamAppendError::Conflict(at))) => Appended::Conflict(at.into()),
        Ok(Err(StreamAppendError::HigherVote(vote))) => Appended::HigherVote(vote.into()),
        Err(refusal) => Appended::Refused(refusal.into()),
    };
    codec::encode(&appended).into()
}

/// Reads an `Appended`, the answer to entries in `(prev, last]`. An answer that vouches for more than was sent, or
/// conflicts elsewhere, would corrupt the leader's view of its followers.
pub(crate) fn decode_appended(
    bytes: &[u8],
    prev: Option<LogId>,
    last: Option<LogId>,
) -> Result<Result<AppendResult, Refusal>, WireError> {
    Ok(match body("appended", bytes)? {
        Appended::Matching(matching) => {
            let matching = un_id(matching);
            if matching > last || matching < prev {
                return Err(WireError::Body("appended", format!("matching {matching:?} of {prev:?}..={last:?}")));
            }
            Ok(Ok(matching))
        }
        Appended::Conflict(at) => {
            let at = LogId::from(at);
            if Some(at) != prev {
                return Err(WireError::Body("appended", format!("conflict at {at}, asked about {prev:?}")));
            }
            Ok(Err(StreamAppendError::Conflict(at)))
        }
        Appended::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote.into()))),
        Appended::Refused(refused) => Err(refused.into()),
    })
}

#[derive(Debug, Serialize, Deserialize)]
struct HeartbeatBody {
    to: To,
    vote: repr::Vote,
    prev: Option<repr::LogId>,
    commit: Option<repr::LogId>,
}

/// The body of a `Heartbeat`. The request's entries are not sent: it must have none.
pub(crate) fn encode_heartbeat(to: Target, request: &AppendEntriesRequest) -> Bytes {
    codec::encode(&HeartbeatBody {
        to: to.into(),
        vote: request.vote.into(),
        prev: id(request.prev_log_id),
        commit: id(request.leader_commit),
    })
    .into()
}

/// Reads a `Heartbeat`.
pub(crate) fn decode_heartbeat(bytes: &[u8]) -> Result<(Target, AppendEntriesRequest), WireError> {
    let HeartbeatBody { to, vote, prev, commit } = body("heartbeat", bytes)?;
    let request = AppendEntriesRequest {
        vote: vote.into(),
        prev_log_id: un_id(prev),
        leader_commit: un_id(commit),
        entries: Vec::new(),
    };
    Ok((to.into(), request))
}

/// The answer to a `Heartbeat` after `prev`, in the form of a stream's: it carries no entries, so success matches `prev`.
pub(crate) fn encode_heartbeat_answer(response: AppendEntriesResponse, prev: Option<LogId>) -> Bytes {
    let result = match response {
        AppendEntriesResponse::Success => Ok(Ok(prev)),
        AppendEntriesResponse::PartialSuccess(matching) => Ok(Ok(matching)),
        AppendEntriesResponse::Conflict => match prev {
            Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
            None => Err(Refusal::Unable("a conflict before the first entry".into())),
        },
        AppendEntriesResponse::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
    };
    encode_appended(result)
}

#[derive(Debug, Serialize, Deserialize)]
struct VoteBody {
    to: To,
    vote: repr::Vote,
    last: Option<repr::LogId>,
    leadership_transfer: bool,
}

/// The body of a `Vote` or `PreVote`.
pub(crate) fn encode_vote(to: Target, request: &VoteRequest) -> Bytes {
    codec::encode(&VoteBody {
        to: to.into(),
        vote: request.vote.into(),
        last: id(request.last_log_id),
        leadership_transfer: request.leadership_transfer,
    })
    .into()
}

/// Reads a `Vote` or `PreVote`.
pub(crate) fn decode_vote(bytes: &[u8]) -> Result<(Target, VoteRequest), WireError> {
    let VoteBody { to, vote, last, leadership_transfer } = body("vote", bytes)?;
    let mut request = VoteRequest::new(vote.into(), un_id(last));
    request.leadership_transfer = leadership_transfer;
    Ok((to.into(), request))
}

#[derive(Debug, Serialize, Deserialize)]
struct VoteAnswer {
    vote: repr::Vote,
    granted: bool,
    last: Option<repr::LogId>,
}

/// The answer to a vote.
pub(crate) fn encode_vote_answer(response: &VoteResponse) -> Bytes {
    codec::encode(&VoteAnswer {
        vote: response.vote.into(),
        granted: response.vote_granted,
        last: id(response.last_log_id),
    })
    .into()
}

/// Reads the answer to a vote.
pub(crate) fn decode_vote_answer(bytes: &[u8]) -> Result<VoteResponse, WireError> {
    let VoteAnswer { vote, granted, last } = body("vote answer", bytes)?;
    Ok(VoteResponse::new(Vote::from(vote), un_id(last), granted))
}

#[derive(Debug, Serialize, Deserialize)]
struct TransferBody {
    to: To,
    from_leader: repr::Vote,
    to_replica: ReplicaId,
    last: Option<repr::LogId>,
}

/// The body of a `Transfer`.
pub(crate) fn encode_transfer(to: Target, request: &TransferLeaderRequest) -> Bytes {
    codec::encode(&TransferBody {
        to: to.into(),
        from_leader: (*request.from_leader()).into(),
        to_replica: *request.to_node_id(),
        last: id(request.last_log_id().copied()),
    })
    .into()
}

/// Reads a `Transfer`.
pub(crate) fn decode_transfer(bytes: &[u8]) -> Result<(Target, TransferLeaderRequest), WireError> {
    let TransferBody { to, from_leader, to_replica, last } = body("transfer", bytes)?;
    Ok((to.into(), TransferLeaderRequest::new(from_leader.into(), to_replica, un_id(last))))
}

#[derive(Debug, Serialize, Deserialize)]
enum TransferAnswer {
    Taken,
    VoteChanged(repr::Vote, repr::Vote),
    LogNotFlushed(Option<repr::LogId>, Option<repr::LogId>),
}

/// The answer to a `Transfer`.
pub(crate) fn encode_transfer_answer(response: TransferLeaderResponse) -> Bytes {
    let answer = match response {
        Ok(()) => TransferAnswer::Taken,
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            TransferAnswer::VoteChanged(expected.into(), actual.into())
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            TransferAnswer::LogNotFlushed(id(expected), id(actual))
        }
    };
    codec::encode(&answer).into()
}

/// Reads the answer to a `Transfer`.
pub(crate) fn decode_transfer_answer(bytes: &[u8]) -> Result<TransferLeaderResponse, WireError> {
    Ok(match body("transfer answer", bytes)? {
        TransferAnswer::Taken => Ok(()),
        TransferAnswer::VoteChanged(expected, actual) => {
            Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
        }
        TransferAnswer::LogNotFlushed(expected, actual) => {
            Err(TransferLeaderError::LogNotFlushed { expected: un_id(expected), actual: un_id(actual) })
        }
    })
}

#[derive(Debug, Serialize, Deserialize)]
struct SnapshotHead {
    to: To,
    vote: repr::Vote,
    last: Option<repr::LogId>,
    membership_at: Option<repr::LogId>,
    membership: repr::Membership,
}

/// A `Snapshot`'s body in pieces; its contents are shared.
pub(crate) fn encode_snapshot(to: Target, vote: Vote, snapshot: &Snapshot) -> Vec<Bytes> {
    let meta = &snapshot.meta;
    let head = codec::encode(&SnapshotHead {
        to: to.into(),
        vote: vote.into(),
        last: id(meta.last_log_id),
        membership_at: id(*meta.last_membership.log_id()),
        membership: meta.last_membership.membership().into(),
    });
    let mut small = BytesMut::with_capacity(4 + head.len());
    small.put_u32_le(head.len() as u32);
    small.put_slice(&head);
    vec![small.freeze(), snapshot.snapshot.clone()]
}

/// Reads a `Snapshot`.
pub(crate) fn decode_snapshot(mut bytes: Bytes) -> Result<(Target, Vote, Snapshot), WireError> {
    let malformed = |why: String| WireError::Body("snapshot", why);
    if bytes.len() < 4 {
        return Err(malformed("no head".into()));
    }
    let head_bytes = bytes.get_u32_le() as usize;
    if bytes.len() < head_bytes {
        return Err(malformed(format!("head of {head_bytes} bytes is cut short")));
    }
    let head: SnapshotHead = body("snapshot", &bytes.split_to(head_bytes))?;
    // Before the first membership entry a snapshot carries openraft's empty default, which `new` refuses.
    let membership = match head.membership.configs.is_empty() && head.membership.nodes.is_empty() {
        true => Membership::default(),
        false => Membership::try_from(head.membership).map_err(malformed)?,
    };
    let meta = SnapshotMeta {
        last_log_id: un_id(head.last),
        last_membership: StoredMembership::new(un_id(head.membership_at), membership),
    };
    Ok((head.to.into(), head.vote.into(), Snapshot { meta, snapshot: bytes }))
}

/// The answer to a `Snapshot`.
pub(crate) fn encode_snapshot_answer(response: &SnapshotResponse) -> Bytes {
    codec::encode(&repr::Vote::from(response.vote)).into()
}

/// Reads the answer to a `Snapshot`.
pub(crate) fn decode_snapshot_answer(bytes: &[u8]) -> Result<SnapshotResponse, WireError> {
    body::<repr::Vote>("snapshot answer", bytes).map(|vote| SnapshotResponse::new(vote.into()))
}

/// The body of a `Frames`.
pub(crate) fn encode_frames(request: &FramesRequest) -> Bytes {
    codec::encode(request).into()
}

/// Reads a `Frames`.
pub(crate) fn decode_frames(bytes: &[u8]) -> Result<FramesRequest, WireError> {
    body("frames", bytes)
}

/// The body of a `Fitness`.
pub(crate) fn encode_fitness(to: Target) -> Bytes {
    codec::encode(&(to.group, to.replica)).into()
}

/// Reads a `Fitness`.
pub(crate) fn decode_fitness(bytes: &[u8]) -> Result<Target, WireError> {
    body("fitness", bytes).map(|(group, replica)| Target { group, replica })
}

/// The answer to a `Fitness`: one byte, whether it may lead.
pub(crate) fn encode_fitness_answer(may_lead: bool) -> Bytes {
    Bytes::copy_from_slice(&[u8::from(may_lead)])
}

/// Reads the answer to a `Fitness`.
pub(crate) fn decode_fitness_answer(bytes: &[u8]) -> Result<bool, WireError> {
    match bytes {
        [0] => Ok(false),
        [1] => Ok(true),
        other => Err(WireError::Body("fitness answer", format!("{} bytes", other.len()))),
    }
}

const ANSWER_DONE: u8 = 0;
const ANSWER_NOT_HERE: u8 = 1;
const ANSWER_UNABLE: u8 = 2;

/// The body of an `Answer`, in pieces.
pub(crate) fn encode_answer(answer: Result<Bytes, Refusal>) -> Vec<Bytes> {
    match answer {
        Ok(done) => vec![Bytes::from_static(&[ANSWER_DONE]), done],
        Err(Refusal::NotHere) => vec![Bytes::from_static(&[ANSWER_NOT_HERE])],
        Err(Refusal::Unable(why)) => {
            let why: String = why.chars().take(1024).collect();
            vec![Bytes::from_static(&[ANSWER_UNABLE]), why.into()]
        }
    }
}

/// Reads an `Answer`.
pub(crate) fn decode_answer(mut bytes: Bytes) -> Result<Result<Bytes, Refusal>, WireError> {
    if bytes.is_empty() {
        return Err(WireError::Body("answer", "empty".into()));
    }
    match bytes.get_u8() {
        ANSWER_DONE => Ok(Ok(bytes)),
        ANSWER_NOT_HERE => Ok(Err(Refusal::NotHere)),
        ANSWER_UNABLE => Ok(Err(Refusal::Unable(String::from_utf8_lossy(&bytes).into_owned()))),
        verdict => Err(WireError::Body("answer", format!("verdict {verdict}"))),
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use proptest::prelude::*;

    use super::*;
    use crate::log::frame::{FrameHeader, FrameKind};
    use crate::types::{EntryData, log_id, vote};

    fn stored(term: u64, index: u64, payload: Vec<u8>) -> Entry {
        let header = FrameHeader {
            offset_span: 2,
            record_count: 2,
            max_timestamp: 77,
            ..FrameHeader::bare(FrameKind::Records, log_id(term, index), 2 * index)
        };
        entry::from_frame(Frame::new(header, payload.into())).unwrap()
    }

    fn request(first: u64, payloads: &[Vec<u8>]) -> AppendEntriesRequest {
        AppendEntriesRequest {
            vote: vote(4, ReplicaId(9), true),
            prev_log_id: first.checked_sub(1).map(|index| log_id(3, index)),
            leader_commit: Some(log_id(2, 1)),
            entries: (first..).zip(payloads).map(|(index, payload)| stored(4, index, payload.clone())).collect(),
        }
    }

    fn join(pieces: Vec<Bytes>) -> Bytes {
        pieces.concat().into()
    }

    fn same(one: &AppendEntriesRequest, other: &AppendEntriesRequest) -> bool {
        let frames =
            |r: &AppendEntriesRequest| -> Vec<_> { r.entries.iter().map(|e| entry::to_frame(e, 0).unwrap()).collect() };
        one.vote == other.vote
            && one.prev_log_id == other.prev_log_id
            && one.leader_commit == other.leader_commit
            && frames(one) == frames(other)
    }

    proptest! {
        #[test]
        fn an_append_survives_the_round_trip(
            first in 0u64..100, payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..10),
        ) {
            let request = request(first, &payloads);
            let bytes = join(encode_append(&request).unwrap());
            prop_assert!(same(&decode_append(bytes).unwrap(), &request));
        }

        #[test]
        fn a_broken_append_is_refused(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..5),
            at in any::<prop::sample::Index>(), cut in any::<bool>(),
        ) {
            let whole = join(encode_append(&request(5, &payloads)).unwrap());
            let at = at.index(whole.len());
            if cut {
                prop_assert!(decode_append(whole.slice(..at)).is_err());
            } else {
                // The head has no checksum of its own (the frame's covers it), so only no panic is asked for.
                let mut flipped = whole.to_vec();
                flipped[at] ^= 1;
                let _ = decode_append(flipped.into());
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let shared = Bytes::from(bytes.clone());
            let _ = decode_open(&bytes);
            let _ = decode_append(shared.clone());
            let _ = decode_appended(&bytes, None, None);
            let _ = decode_heartbeat(&bytes);
            let _ = decode_vote(&bytes);
            let _ = decode_vote_answer(&bytes);
            let _ = decode_transfer(&bytes);
            let _ = decode_transfer_answer(&bytes);
            let _ = decode_snapshot(shared.clone());
            let _ = decode_snapshot_answer(&bytes);
            let _ = decode_answer(shared);
        }
    }

    #[test]
    fn a_count_of_entries_that_cannot_be_asks_for_no_memory() {
        let head = AppendHead { vote: vote(1, ReplicaId(1), true).into(), prev: None, commit: None, entries: u32::MAX };
        let head = codec::encode(&head);
        let bytes = [&(head.len() as u16).to_le_bytes()[..], &head].concat();
        assert!(decode_append(bytes.into()).is_err());
    }

    #[test]
    fn entries_must_follow_each_other() {
        let broken = |change: fn(&mut AppendEntriesRequest)| {
            let mut request = request(5, &[vec![1], vec![2], vec![3]]);
            change(&mut request);
            decode_append(join(encode_append(&request).unwrap())).is_err()
        };
        assert!(!broken(|_| ()));
        assert!(broken(|request| drop(request.entries.remove(1))));
        assert!(broken(|request| request.prev_log_id = Some(log_id(3, 5))));
        assert!(broken(|request| request.prev_log_id = None));
        assert!(broken(|request| request.entries[2] = stored(3, 7, vec![])));
        assert!(broken(|request| request.vote = vote(3, ReplicaId(9), true)));
    }

    #[test]
    fn payloads_are_shared_with_the_log() {
        let request = request(5, &[vec![1; 1000], vec![2; 1000]]);
        let pieces = encode_append(&request).unwrap();
        for entry in &request.entries {
            let EntryPayload::Normal(EntryData::Stored(frame)) = &entry.payload else { panic!("not stored") };
            assert!(pieces.iter().any(|piece| piece.as_ptr() == frame.payload.as_ptr()));
        }
    }

    #[test]
    fn answers_must_fit_what_was_asked() {
        let (prev, last) = (Some(log_id(1, 4)), Some(log_id(1, 6)));
        let decode = |result| decode_appended(&encode_appended(result), prev, last);
        for matching in [prev, Some(log_id(1, 5)), last] {
            assert_eq!(decode(Ok(Ok(matching))), Ok(Ok(Ok(matching))));
        }
        assert!(decode(Ok(Ok(Some(log_id(1, 7))))).is_err());
        assert!(decode(Ok(Ok(None))).is_err());
        let conflict = |index| Ok(Err(StreamAppendError::Conflict(log_id(1, index))));
        assert!(decode(conflict(4)).is_ok());
        assert!(decode(conflict(3)).is_err());
        assert_eq!(decode(Err(Refusal::NotHere)), Ok(Err(Refusal::NotHere)));
        let higher = StreamAppendError::HigherVote(vote(9, ReplicaId(3), false));
        assert_eq!(decode(Ok(Err(higher.clone()))), Ok(Ok(Err(higher))));
    }

    #[test]
    fn whether_one_may_lead_is_one_byte() {
        let to = Target { group: GroupId(3), replica: ReplicaId(8) };
        assert_eq!(decode_fitness(&encode_fitness(to)), Ok(to));
        assert!(decode_fitness(&encode_fitness(to)[..1]).is_err());
        for may in [false, true] {
            assert_eq!(decode_fitness_answer(&encode_fitness_answer(may)), Ok(may));
        }
        for wrong in [&[][..], &[2], &[1, 1]] {
            assert!(decode_fitness_answer(wrong).is_err());
        }
    }

    #[test]
    fn a_snapshot_survives_the_round_trip() {
        let to = Target { group: GroupId(3), replica: ReplicaId(8) };
        let homes: std::collections::BTreeMap<_, _> =
            [(ReplicaId(8), crate::types::ReplicaHome { broker: crate::types::BrokerId(2) })].into();
        let members = Membership::new(vec![homes.keys().copied().collect()], homes).unwrap();
        for membership in
            [StoredMembership::new(None, Membership::default()), StoredMembership::new(Some(log_id(1, 0)), members)]
        {
            let meta = SnapshotMeta { last_log_id: Some(log_id(2, 50)), last_membership: membership };
            let snapshot = Snapshot { meta, snapshot: Bytes::from_static(b"producers") };
            let bytes = join(encode_snapshot(to, vote(2, ReplicaId(1), true), &snapshot));
            let (found_to, found_vote, found) = decode_snapshot(bytes.clone()).unwrap();
            assert_eq!((found_to, found_vote), (to, vote(2, ReplicaId(1), true)));
            assert_eq!((found.meta, found.snapshot), (snapshot.meta, snapshot.snapshot));
            assert!(decode_snapshot(bytes.slice(..10)).is_err());
        }
    }

    /// The bytes of every body, so that a later version reads them. Change them only with the protocol version.
    #[test]
    fn the_bodies_are_those_of_the_golden_script() {
        let to = Target { group: GroupId(300), replica: ReplicaId(8) };
        let mut script = String::new();
        let mut show = |what: &str, bytes: &[u8]| {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            script.push_str(&format!("{what}\n  {hex}\n"));
        };
        show("open: group 300, replica 8", &encode_open(to));
        show("append: one entry", &join(encode_append(&request(5, &[b"ab".to_vec()])).unwrap()));
        show("appended: 3.7", &encode_appended(Ok(Ok(Some(log_id(3, 7))))));
        show("appended: conflict at 3.7", &encode_appended(Ok(Err(StreamAppendError::Conflict(log_id(3, 7))))));
        show("appended: not here", &encode_appended(Err(Refusal::NotHere)));
        show("heartbeat", &encode_heartbeat(to, &request(5, &[])));
        let mut asked = VoteRequest::new(vote(4, ReplicaId(9), false), Some(log_id(3, 7)));
        asked.leadership_transfer = true;
        show("vote, leadership transfer", &encode_vote(to, &asked));
        show("vote answer", &encode_vote_answer(&VoteResponse::new(asked.vote, None, true)));
        let transfer = TransferLeaderRequest::new(vote(4, ReplicaId(9), true), ReplicaId(8), Some(log_id(3, 7)));
        show("transfer", &encode_transfer(to, &transfer));
        show("transfer answer: taken", &encode_transfer_answer(Ok(())));
        show("fitness: group 300, replica 8", &encode_fitness(to));
        show("fitness answer: may lead", &encode_fitness_answer(true));
        show("answer: unable", &join(encode_answer(Err(Refusal::Unable("no".into())))));
        assert_eq!(script, include_str!("golden/message.txt"));
    }
}
