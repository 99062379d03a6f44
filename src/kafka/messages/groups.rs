//! Consumer groups: the classic protocol, offsets, administration.

use bytes::Bytes;

use crate::kafka_message;

kafka_message! {
    OffsetCommitRequest {
        group_id: String [0..],
        generation_id: i32 [1..] = -1,
        member_id: String [1..],
        group_instance_id: Option<String> [7..],
        retention_time_ms: i64 [2..=4] = -1,
        topics: Vec<OffsetCommitTopic> [0..],
    }
}

kafka_message! {
    OffsetCommitTopic {
        name: String [0..],
        partitions: Vec<OffsetCommitPartition> [0..],
    }
}

kafka_message! {
    OffsetCommitPartition {
        partition: i32 [0..],
        offset: i64 [0..],
        leader_epoch: i32 [6..] = -1,
        metadata: Option<String> [0..],
    }
}

kafka_message! {
    OffsetCommitResponse {
        throttle_time_ms: i32 [3..],
        topics: Vec<OffsetCommittedTopic> [0..],
    }
}

kafka_message! {
    OffsetCommittedTopic {
        name: String [0..],
        partitions: Vec<PartitionError> [0..],
    }
}

kafka_message! {
    PartitionError {
        partition: i32 [0..],
        error_code: i16 [0..],
    }
}

kafka_message! {
    OffsetFetchRequest {
        group_id: String [0..=7],
        topics: Option<Vec<OffsetFetchTopic>> [0..=7],
        groups: Vec<OffsetFetchGroup> [8..],
        require_stable: bool [7..],
    }
}

kafka_message! {
    OffsetFetchTopic {
        name: String [0..],
        partitions: Vec<i32> [0..],
    }
}

kafka_message! {
    OffsetFetchGroup {
        group_id: String [8..],
        member_id: Option<String> [9..],
        member_epoch: i32 [9..] = -1,
        topics: Option<Vec<OffsetFetchTopic>> [8..],
    }
}

kafka_message! {
    OffsetFetchResponse {
        throttle_time_ms: i32 [3..],
        topics: Vec<OffsetFetchedTopic> [0..=7],
        error_code: i16 [2..=7],
        groups: Vec<OffsetFetchedGroup> [8..],
    }
}

kafka_message! {
    OffsetFetchedTopic {
        name: String [0..],
        partitions: Vec<OffsetFetchedPartition> [0..],
    }
}

kafka_message! {
    OffsetFetchedPartition {
        partition: i32 [0..],
        offset: i64 [0..] = -1,
        leader_epoch: i32 [5..] = -1,
        metadata: Option<String> [0..],
        error_code: i16 [0..],
    }
}

kafka_message! {
    OffsetFetchedGroup {
        group_id: String [8..],
        topics: Vec<OffsetFetchedTopic> [8..],
        error_code: i16 [8..],
    }
}

kafka_message! {
    FindCoordinatorRequest {
        key: String [0..=3],
        key_type: i8 [1..],
        keys: Vec<String> [4..],
    }
}

kafka_message! {
    FindCoordinatorResponse {
        throttle_time_ms: i32 [1..],
        error_code: i16 [0..=3],
        error_message: Option<String> [1..=3],
        node_id: i32 [0..=3] = -1,
        host: String [0..=3],
        port: i32 [0..=3] = -1,
        coordinators: Vec<FoundCoordinator> [4..],
    }
}

kafka_message! {
    FoundCoordinator {
        key: String [4..],
        node_id: i32 [4..] = -1,
        host: String [4..],
        port: i32 [4..] = -1,
        error_code: i16 [4..],
        error_message: Option<String> [4..],
    }
}

kafka_message! {
    JoinGroupRequest {
        group_id: String [0..],
        session_timeout_ms: i32 [0..],
        rebalance_timeout_ms: i32 [1..] = -1,
        member_id: String [0..],
        group_instance_id: Option<String> [5..],
        protocol_type: String [0..],
        protocols: Vec<JoinGroupProtocol> [0..],
        reason: Option<String> [8..],
    }
}

kafka_message! {
    JoinGroupProtocol {
        name: String [0..],
        metadata: Bytes [0..],
    }
}

kafka_message! {
    JoinGroupResponse {
        throttle_time_ms: i32 [2..],
        error_code: i16 [0..],
        generation_id: i32 [0..] = -1,
        protocol_type: Option<String> [7..],
        protocol_name: Option<String> [0..],
        leader: String [0..],
        skip_assignment: bool [9..],
        member_id: String [0..],
        members: Vec<JoinGroupMember> [0..],
    }
}

kafka_message! {
    JoinGroupMember {
        member_id: String [0..],
        group_instance_id: Option<String> [5..],
        metadata: Bytes [0..],
    }
}

kafka_message! {
    HeartbeatRequest {
        group_id: String [0..],
        generation_id: i32 [0..],
        member_id: String [0..],
        group_instance_id: Option<String> [3..],
    }
}

kafka_message! {
    HeartbeatResponse {
        throttle_time_ms: i32 [1..],
        error_code: i16 [0..],
    }
}

kafka_message! {
    LeaveGroupRequest {
        group_id: String [0..],
        member_id: String [0..=2],
        members: Vec<LeavingMember> [3..],
    }
}

kafka_message! {
    LeavingMember {
        member_id: String [3..],
        group_instance_id: Option<String> [3..],
        reason: Option<String> [5..],
    }
}

kafka_message! {
    LeaveGroupResponse {
        throttle_time_ms: i32 [1..],
        error_code: i16 [0..],
        members: Vec<LeftMember> [3..],
    }
}

kafka_message! {
    LeftMember {
        member_id: String [3..],
        group_instance_id: Option<String> [3..],
        error_code: i16 [3..],
    }
}

kafka_message! {
    SyncGroupRequest {
        group_id: String [0..],
        generation_id: i32 [0..],
        member_id: String [0..],
        group_instance_id: Option<String> [3..],
        protocol_type: Option<String> [5..],
        protocol_name: Option<String> [5..],
        assignments: Vec<SyncGroupAssignment> [0..],
    }
}

kafka_message! {
    SyncGroupAssignment {
        member_id: String [0..],
        assignment: Bytes [0..],
    }
}

kafka_message! {
    SyncGroupResponse {
        throttle_time_ms: i32 [1..],
        error_code: i16 [0..],
        protocol_type: Option<String> [5..],
        protocol_name: Option<String> [5..],
        assignment: Bytes [0..],
    }
}

kafka_message! {
    DescribeGroupsRequest {
        groups: Vec<String> [0..],
        include_authorized_operations: bool [3..],
    }
}

kafka_message! {
    DescribeGroupsResponse {
        throttle_time_ms: i32 [1..],
        groups: Vec<DescribedGroup> [0..],
    }
}

kafka_message! {
    DescribedGroup {
        error_code: i16 [0..],
        error_message: Option<String> [6..],
        group_id: String [0..],
        group_state: String [0..],
        protocol_type: String [0..],
        protocol_data: String [0..],
        members: Vec<DescribedGroupMember> [0..],
        authorized_operations: i32 [3..] = i32::MIN,
    }
}

kafka_message! {
    DescribedGroupMember {
        member_id: String [0..],
        group_instance_id: Option<String> [4..],
        client_id: String [0..],
        client_host: String [0..],
        member_metadata: Bytes [0..],
        member_assignment: Bytes [0..],
    }
}

kafka_message! {
    ListGroupsRequest {
        states_filter: Vec<String> [4..],
        types_filter: Vec<String> [5..],
    }
}

kafka_message! {
    ListGroupsResponse {
        throttle_time_ms: i32 [1..],
        error_code: i16 [0..],
        groups: Vec<ListedGroup> [0..],
    }
}

kafka_message! {
    ListedGroup {
        group_id: String [0..],
        protocol_type: String [0..],
        group_state: String [4..],
        group_type: String [5..],
    }
}

kafka_message! {
    DeleteGroupsRequest {
        groups: Vec<String> [0..],
    }
}

kafka_message! {
    DeleteGroupsResponse {
        throttle_time_ms: i32 [0..],
        results: Vec<DeletedGroup> [0..],
    }
}

kafka_message! {
    DeletedGroup {
        group_id: String [0..],
        error_code: i16 [0..],
    }
}

kafka_message! {
    OffsetDeleteRequest {
        group_id: String [0..],
        topics: Vec<OffsetDeleteTopic> [0..],
    }
}

kafka_message! {
    OffsetDeleteTopic {
        name: String [0..],
        partitions: Vec<OffsetDeletePartition> [0..],
    }
}

kafka_message! {
    OffsetDeletePartition {
        partition: i32 [0..],
    }
}

kafka_message! {
    OffsetDeleteResponse {
        error_code: i16 [0..],
        throttle_time_ms: i32 [0..],
        topics: Vec<OffsetCommittedTopic> [0..],
    }
}
