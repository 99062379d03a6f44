//! A member of a consumer group, alone in it, as Kafka's clients make one.

use pontoon::kafka::messages::{
    JoinGroupProtocol, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, Request, Response,
};

use crate::kafka_hostile::Client;

/// What makes one: it is a member for five minutes whatever it does then.
pub fn join_request(group: &str, metadata: impl Into<bytes::Bytes>) -> Request {
    Request::JoinGroup(JoinGroupRequest {
        group_id: group.into(),
        session_timeout_ms: 300_000,
        rebalance_timeout_ms: 300_000,
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupProtocol { name: "range".into(), metadata: metadata.into() }],
        ..Default::default()
    })
}

/// Joins, with this to say of itself.
pub async fn join(client: &mut Client, group: &str, metadata: impl Into<bytes::Bytes>) -> JoinGroupResponse {
    let Response::JoinGroup(joined) = client.call(join_request(group, metadata), 3).await else { panic!() };
    assert_eq!(joined.error_code, 0, "{joined:?}");
    joined
}

/// Leaves.
pub async fn leave(client: &mut Client, group: &str, member_id: String) {
    let leave = LeaveGroupRequest { group_id: group.into(), member_id, ..Default::default() };
    let Response::LeaveGroup(left) = client.call(Request::LeaveGroup(leave), 1).await else { panic!() };
    assert_eq!(left.error_code, 0, "{left:?}");
}
