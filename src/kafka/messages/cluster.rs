//! ApiVersions, Metadata, DescribeCluster: who is there and what it speaks.

use crate::kafka::wire::Uuid;
use crate::kafka_message;

kafka_message! {
    ApiVersionsRequest {
        client_software_name: String [3..],
        client_software_version: String [3..],
    }
}

kafka_message! {
    ApiVersionsResponse {
        error_code: i16 [0..],
        api_keys: Vec<ApiVersion> [0..],
        throttle_time_ms: i32 [1..],
    }
}

kafka_message! {
    ApiVersion {
        api_key: i16 [0..],
        min_version: i16 [0..],
        max_version: i16 [0..],
    }
}

kafka_message! {
    MetadataRequest {
        topics: Option<Vec<MetadataTopicName>> [0..],
        allow_auto_topic_creation: bool [4..] = true,
        include_cluster_authorized_operations: bool [8..=10],
        include_topic_authorized_operations: bool [8..],
    }
}

kafka_message! {
    MetadataTopicName {
        topic_id: Uuid [10..],
        name: Option<String> [0..],
    }
}

kafka_message! {
    MetadataResponse {
        throttle_time_ms: i32 [3..],
        brokers: Vec<MetadataBroker> [0..],
        cluster_id: Option<String> [2..],
        controller_id: i32 [1..] = -1,
        topics: Vec<MetadataTopic> [0..],
        cluster_authorized_operations: i32 [8..=10] = i32::MIN,
        error_code: i16 [13..],
    }
}

kafka_message! {
    MetadataBroker {
        node_id: i32 [0..],
        host: String [0..],
        port: i32 [0..],
        rack: Option<String> [1..],
    }
}

kafka_message! {
    MetadataTopic {
        error_code: i16 [0..],
        name: Option<String> [0..],
        topic_id: Uuid [10..],
        is_internal: bool [1..],
        partitions: Vec<MetadataPartition> [0..],
        topic_authorized_operations: i32 [8..] = i32::MIN,
    }
}

kafka_message! {
    MetadataPartition {
        error_code: i16 [0..],
        partition_index: i32 [0..],
        leader_id: i32 [0..] = -1,
        leader_epoch: i32 [7..] = -1,
        replica_nodes: Vec<i32> [0..],
        isr_nodes: Vec<i32> [0..],
        offline_replicas: Vec<i32> [5..],
    }
}

kafka_message! {
    DescribeClusterRequest {
        include_cluster_authorized_operations: bool [0..],
        endpoint_type: i8 [1..] = 1,
        include_fenced_brokers: bool [2..],
    }
}

kafka_message! {
    DescribeClusterResponse {
        throttle_time_ms: i32 [0..],
        error_code: i16 [0..],
        error_message: Option<String> [0..],
        endpoint_type: i8 [1..] = 1,
        cluster_id: String [0..],
        controller_id: i32 [0..] = -1,
        brokers: Vec<DescribedBroker> [0..],
        cluster_authorized_operations: i32 [0..] = i32::MIN,
    }
}

kafka_message! {
    DescribedBroker {
        broker_id: i32 [0..],
        host: String [0..],
        port: i32 [0..],
        rack: Option<String> [0..],
        is_fenced: bool [2..],
    }
}
