//! Produce, Fetch, ListOffsets, OffsetForLeaderEpoch, InitProducerId: records and where they are.

use crate::kafka::wire::{PassedOver, RecordData, Uuid};
use crate::kafka_message;

kafka_message! {
    ProduceRequest {
        transactional_id: Option<String> [3..],
        acks: i16 [0..],
        timeout_ms: i32 [0..],
        topics: Vec<ProduceTopic> [0..],
    }
}

kafka_message! {
    ProduceTopic {
        name: String [0..=12],
        topic_id: Uuid [13..],
        partitions: Vec<ProducePartition> [0..],
    }
}

kafka_message! {
    ProducePartition {
        index: i32 [0..],
        records: RecordData [0..],
    }
}

kafka_message! {
    ProduceResponse {
        topics: Vec<ProducedTopic> [0..],
        throttle_time_ms: i32 [1..],
    } tagged { 0: node_endpoints: Vec<NodeEndpoint> [10..], }
}

kafka_message! {
    ProducedTopic {
        name: String [0..=12],
        topic_id: Uuid [13..],
        partitions: Vec<ProducedPartition> [0..],
    }
}

kafka_message! {
    ProducedPartition {
        index: i32 [0..],
        error_code: i16 [0..],
        base_offset: i64 [0..] = -1,
        log_append_time_ms: i64 [2..] = -1,
        log_start_offset: i64 [5..] = -1,
        record_errors: Vec<RecordError> [8..],
        error_message: Option<String> [8..],
    } tagged { 0: current_leader: LeaderIdAndEpoch [10..], }
}

kafka_message! {
    RecordError {
        batch_index: i32 [8..],
        message: Option<String> [8..],
    }
}

kafka_message! {
    LeaderIdAndEpoch {
        leader_id: i32 [0..] = -1,
        leader_epoch: i32 [0..] = -1,
    }
}

kafka_message! {
    NodeEndpoint {
        node_id: i32 [0..],
        host: String [0..],
        port: i32 [0..],
        rack: Option<String> [0..],
    }
}

kafka_message! {
    FetchRequest {
        replica_id: i32 [0..=14] = -1,
        max_wait_ms: i32 [0..],
        min_bytes: i32 [0..],
        max_bytes: i32 [3..] = i32::MAX,
        isolation_level: i8 [4..],
        session_id: i32 [7..],
        session_epoch: i32 [7..] = -1,
        topics: Vec<FetchTopic> [0..],
        forgotten: PassedOver<ForgottenTopic> [7..],
        rack_id: String [11..],
    } tagged {
        0: cluster_id: Option<String> [12..],
        1: replica_state: ReplicaState [15..],
    }
}

kafka_message! {
    ReplicaState {
        replica_id: i32 [15..] = -1,
        replica_epoch: i64 [15..] = -1,
    }
}

kafka_message! {
    FetchTopic {
        topic: String [0..=12],
        topic_id: Uuid [13..],
        partitions: Vec<FetchPartition> [0..],
    }
}

kafka_message! {
    FetchPartition {
        partition: i32 [0..],
        current_leader_epoch: i32 [9..] = -1,
        fetch_offset: i64 [0..],
        last_fetched_epoch: i32 [12..] = -1,
        log_start_offset: i64 [5..] = -1,
        partition_max_bytes: i32 [0..],
    } tagged { 0: replica_directory_id: Uuid [17..], }
}

kafka_message! {
    ForgottenTopic {
        topic: String [7..=12],
        topic_id: Uuid [13..],
        partitions: Vec<i32> [7..],
    }
}

kafka_message! {
    FetchResponse {
        throttle_time_ms: i32 [1..],
        error_code: i16 [7..],
        session_id: i32 [7..],
        topics: Vec<FetchedTopic> [0..],
    } tagged { 0: node_endpoints: Vec<NodeEndpoint> [16..], }
}

kafka_message! {
    FetchedTopic {
        topic: String [0..=12],
        topic_id: Uuid [13..],
        partitions: Vec<FetchedPartition> [0..],
    }
}

kafka_message! {
    FetchedPartition {
        partition: i32 [0..],
        error_code: i16 [0..],
        high_watermark: i64 [0..] = -1,
        last_stable_offset: i64 [4..] = -1,
        log_start_offset: i64 [5..] = -1,
        aborted_transactions: Option<Vec<AbortedTransaction>> [4..],
        preferred_read_replica: i32 [11..] = -1,
        records: RecordData [0..],
    } tagged {
        0: diverging_epoch: EpochEndOffset [12..],
        1: current_leader: LeaderIdAndEpoch [12..],
    }
}

kafka_message! {
    AbortedTransaction {
        producer_id: i64 [4..],
        first_offset: i64 [4..],
    }
}

kafka_message! {
    EpochEndOffset {
        epoch: i32 [12..] = -1,
        end_offset: i64 [12..] = -1,
    }
}

kafka_message! {
    ListOffsetsRequest {
        replica_id: i32 [0..] = -1,
        isolation_level: i8 [2..],
        topics: Vec<ListOffsetsTopic> [0..],
        timeout_ms: i32 [10..],
    }
}

kafka_message! {
    ListOffsetsTopic {
        name: String [0..],
        partitions: Vec<ListOffsetsPartition> [0..],
    }
}

kafka_message! {
    ListOffsetsPartition {
        partition: i32 [0..],
        current_leader_epoch: i32 [4..] = -1,
        timestamp: i64 [0..],
    }
}

kafka_message! {
    ListOffsetsResponse {
        throttle_time_ms: i32 [2..],
        topics: Vec<ListedOffsetsTopic> [0..],
    }
}

kafka_message! {
    ListedOffsetsTopic {
        name: String [0..],
        partitions: Vec<ListedOffsetsPartition> [0..],
    }
}

kafka_message! {
    ListedOffsetsPartition {
        partition: i32 [0..],
        error_code: i16 [0..],
        timestamp: i64 [1..] = -1,
        offset: i64 [1..] = -1,
        leader_epoch: i32 [4..] = -1,
    }
}

kafka_message! {
    OffsetForLeaderEpochRequest {
        replica_id: i32 [3..] = -2,
        topics: Vec<LeaderEpochTopic> [0..],
    }
}

kafka_message! {
    LeaderEpochTopic {
        topic: String [0..],
        partitions: Vec<LeaderEpochPartition> [0..],
    }
}

kafka_message! {
    LeaderEpochPartition {
        partition: i32 [0..],
        current_leader_epoch: i32 [2..] = -1,
        leader_epoch: i32 [0..],
    }
}

kafka_message! {
    OffsetForLeaderEpochResponse {
        throttle_time_ms: i32 [2..],
        topics: Vec<EpochEndTopic> [0..],
    }
}

kafka_message! {
    EpochEndTopic {
        topic: String [0..],
        partitions: Vec<EpochEndPartition> [0..],
    }
}

kafka_message! {
    EpochEndPartition {
        error_code: i16 [0..],
        partition: i32 [0..],
        leader_epoch: i32 [1..] = -1,
        end_offset: i64 [0..] = -1,
    }
}

kafka_message! {
    InitProducerIdRequest {
        transactional_id: Option<String> [0..],
        transaction_timeout_ms: i32 [0..],
        producer_id: i64 [3..] = -1,
        producer_epoch: i16 [3..] = -1,
    }
}

kafka_message! {
    InitProducerIdResponse {
        throttle_time_ms: i32 [0..],
        error_code: i16 [0..],
        producer_id: i64 [0..] = -1,
        producer_epoch: i16 [0..] = -1,
    }
}
