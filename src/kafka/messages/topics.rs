//! Creating, changing and deleting topics, and their configuration.

use crate::kafka::wire::Uuid;
use crate::kafka_message;

kafka_message! {
    CreateTopicsRequest {
        topics: Vec<CreatableTopic> [0..],
        timeout_ms: i32 [0..],
        validate_only: bool [1..],
    }
}

kafka_message! {
    CreatableTopic {
        name: String [0..],
        num_partitions: i32 [0..],
        replication_factor: i16 [0..],
        assignments: Vec<ReplicaAssignment> [0..],
        configs: Vec<ConfigValue> [0..],
    }
}

kafka_message! {
    ReplicaAssignment {
        partition_index: i32 [0..],
        broker_ids: Vec<i32> [0..],
    }
}

kafka_message! {
    ConfigValue {
        name: String [0..],
        value: Option<String> [0..],
    }
}

kafka_message! {
    CreateTopicsResponse {
        throttle_time_ms: i32 [2..],
        topics: Vec<CreatedTopic> [0..],
    }
}

kafka_message! {
    CreatedTopic {
        name: String [0..],
        topic_id: Uuid [7..],
        error_code: i16 [0..],
        error_message: Option<String> [1..],
        num_partitions: i32 [5..] = -1,
        replication_factor: i16 [5..] = -1,
        configs: Option<Vec<CreatedConfig>> [5..],
    }
}

kafka_message! {
    CreatedConfig {
        name: String [5..],
        value: Option<String> [5..],
        read_only: bool [5..],
        config_source: i8 [5..] = -1,
        is_sensitive: bool [5..],
    }
}

kafka_message! {
    DeleteTopicsRequest {
        topics: Vec<DeletableTopic> [6..],
        topic_names: Vec<String> [0..=5],
        timeout_ms: i32 [0..],
    }
}

kafka_message! {
    DeletableTopic {
        name: Option<String> [6..],
        topic_id: Uuid [6..],
    }
}

kafka_message! {
    DeleteTopicsResponse {
        throttle_time_ms: i32 [1..],
        topics: Vec<DeletedTopic> [0..],
    }
}

kafka_message! {
    DeletedTopic {
        name: Option<String> [0..],
        topic_id: Uuid [6..],
        error_code: i16 [0..],
        error_message: Option<String> [5..],
    }
}

kafka_message! {
    CreatePartitionsRequest {
        topics: Vec<MorePartitions> [0..],
        timeout_ms: i32 [0..],
        validate_only: bool [0..],
    }
}

kafka_message! {
    MorePartitions {
        name: String [0..],
        count: i32 [0..],
        assignments: Option<Vec<PartitionAssignment>> [0..],
    }
}

kafka_message! {
    PartitionAssignment {
        broker_ids: Vec<i32> [0..],
    }
}

kafka_message! {
    CreatePartitionsResponse {
        throttle_time_ms: i32 [0..],
        results: Vec<MorePartitionsResult> [0..],
    }
}

kafka_message! {
    MorePartitionsResult {
        name: String [0..],
        error_code: i16 [0..],
        error_message: Option<String> [0..],
    }
}

kafka_message! {
    DescribeConfigsRequest {
        resources: Vec<DescribeConfigsResource> [0..],
        include_synonyms: bool [1..],
        include_documentation: bool [3..],
    }
}

kafka_message! {
    DescribeConfigsResource {
        resource_type: i8 [0..],
        resource_name: String [0..],
        configuration_keys: Option<Vec<String>> [0..],
    }
}

kafka_message! {
    DescribeConfigsResponse {
        throttle_time_ms: i32 [0..],
        results: Vec<DescribeConfigsResult> [0..],
    }
}

kafka_message! {
    DescribeConfigsResult {
        error_code: i16 [0..],
        error_message: Option<String> [0..],
        resource_type: i8 [0..],
        resource_name: String [0..],
        configs: Vec<DescribedConfig> [0..],
    }
}

kafka_message! {
    DescribedConfig {
        name: String [0..],
        value: Option<String> [0..],
        read_only: bool [0..],
        config_source: i8 [1..] = -1,
        is_sensitive: bool [0..],
        synonyms: Vec<ConfigSynonym> [1..],
        config_type: i8 [3..],
        documentation: Option<String> [3..],
    }
}

kafka_message! {
    ConfigSynonym {
        name: String [1..],
        value: Option<String> [1..],
        source: i8 [1..],
    }
}

kafka_message! {
    AlterConfigsRequest {
        resources: Vec<AlterConfigsResource> [0..],
        validate_only: bool [0..],
    }
}

kafka_message! {
    AlterConfigsResource {
        resource_type: i8 [0..],
        resource_name: String [0..],
        configs: Vec<ConfigValue> [0..],
    }
}

kafka_message! {
    AlterConfigsResponse {
        throttle_time_ms: i32 [0..],
        responses: Vec<AlteredResource> [0..],
    }
}

kafka_message! {
    AlteredResource {
        error_code: i16 [0..],
        error_message: Option<String> [0..],
        resource_type: i8 [0..],
        resource_name: String [0..],
    }
}

kafka_message! {
    IncrementalAlterConfigsRequest {
        resources: Vec<IncrementalResource> [0..],
        validate_only: bool [0..],
    }
}

kafka_message! {
    IncrementalResource {
        resource_type: i8 [0..],
        resource_name: String [0..],
        configs: Vec<ConfigChange> [0..],
    }
}

kafka_message! {
    ConfigChange {
        name: String [0..],
        operation: i8 [0..],
        value: Option<String> [0..],
    }
}

kafka_message! {
    IncrementalAlterConfigsResponse {
        throttle_time_ms: i32 [0..],
        responses: Vec<AlteredResource> [0..],
    }
}

kafka_message! {
    DeleteRecordsRequest {
        topics: Vec<DeleteRecordsTopic> [0..],
        timeout_ms: i32 [0..],
    }
}

kafka_message! {
    DeleteRecordsTopic {
        name: String [0..],
        partitions: Vec<DeleteRecordsPartition> [0..],
    }
}

kafka_message! {
    DeleteRecordsPartition {
        partition: i32 [0..],
        offset: i64 [0..],
    }
}

kafka_message! {
    DeleteRecordsResponse {
        throttle_time_ms: i32 [0..],
        topics: Vec<DeletedRecordsTopic> [0..],
    }
}

kafka_message! {
    DeletedRecordsTopic {
        name: String [0..],
        partitions: Vec<DeletedRecordsPartition> [0..],
    }
}

kafka_message! {
    DeletedRecordsPartition {
        partition: i32 [0..],
        low_watermark: i64 [0..] = -1,
        error_code: i16 [0..],
    }
}
