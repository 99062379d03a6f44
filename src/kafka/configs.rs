//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs: topics by their own keys; brokers only described, by the few keys
//! that tools look for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::dispatch::Handled;
use super::group_answers::{answered, reserve};
use super::messages::{
    AlterConfigsRequest, AlterConfigsResponse, AlteredResource, ConfigChange, ConfigSynonym, DescribeConfigsRequest,
    DescribeConfigsResource, DescribeConfigsResponse, DescribeConfigsResult, DescribedConfig,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, Response,
};
use super::topics::{Refused, Time, await_joined, make_way, named_twice};
use super::{Door, ErrorCode, promises};
use crate::broker::ConfigEntry;

/// Kinds of resources.
pub(super) const TOPIC: i8 = 2;
pub(super) const BROKER: i8 = 4;

/// Where a value comes from.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
pub(super) const SOURCE_DEFAULT: i8 = 5;

/// What a value is.
const KIND_BOOLEAN: i8 = 1;
const KIND_STRING: i8 = 2;
const KIND_INT: i8 = 3;
const KIND_LONG: i8 = 5;
const KIND_LIST: i8 = 7;

/// Longest that the changes of a request may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that a description waits to be up to date.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(1);
/// What is told of a topic, in bytes, about.
const TOPIC_BYTES: usize = 8 << 10;
/// How a value is changed incrementally; the last two are for lists.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;
/// The values that are lists.
const LISTS: &[&str] = &["cleanup.policy"];

/// What counts of an entry, and where it comes from.
pub(super) fn effective(entry: &ConfigEntry) -> (&str, i8) {
    let topic = entry.topic.as_deref().map(|value| (value, SOURCE_TOPIC));
    let broker = entry.broker.as_deref().map(|value| (value, SOURCE_STATIC_BROKER));
    topic.or(broker).unwrap_or((entry.built_in, SOURCE_DEFAULT))
}

/// DescribeConfigs. Who changes a topic may do so through another broker, and look here whether it is done: the catalog is brought up to
/// date first. While nobody can say how far it is, topics are described as this broker knows them.
pub(super) async fn describe(door: &Door, request: DescribeConfigsRequest) -> Handled {
    if request.resources.iter().any(|resource| resource.resource_type == TOPIC) {
        await_joined(door, &Time::of(TIMEOUT)).await;
        let _ = door.broker.catch_up(CATALOG_TIMEOUT).await;
    }
    let synonyms = request.include_synonyms;
    let mut resources = request.resources;
    // Named twice, described once: a topic's description looks at all of its partitions.
    let mut seen = BTreeSet::new();
    resources.retain(|resource| seen.insert((resource.resource_type, resource.resource_name.clone())));
    let there = |one: &&DescribeConfigsResource| {
        one.resource_type == TOPIC && door.broker.topic_id(&one.resource_name).is_some()
    };
    let share = reserve(door, resources.iter().filter(there).count() * TOPIC_BYTES).await;
    let mut results = Vec::with_capacity(resources.len());
    for (at, resource) in resources.into_iter().enumerate() {
        make_way(at).await;
        results.push(describe_one(door, resource, synonyms));
    }
    answered(Response::DescribeConfigs(DescribeConfigsResponse { results, ..Default::default() }), share)
}

fn describe_one(door: &Door, resource: DescribeConfigsResource, synonyms: bool) -> DescribeConfigsResult {
    let DescribeConfigsResource { resource_type, resource_name, configuration_keys } = resource;
    let found = match resource_type {
        TOPIC => topic(door, &resource_name, synonyms),
        BROKER => broker(door, &resource_name),
        other => Err(Refused(ErrorCode::InvalidRequest, format!("resource type {other} has no configuration"))),
    };
    // None named: all, as in Kafka.
    let keys = configuration_keys.as_ref().filter(|keys| !keys.is_empty());
    let wanted = |config: &DescribedConfig| keys.is_none_or(|keys: &Vec<String>| keys.contains(&config.name));
    let (configs, error) = match found {
        Ok(configs) => (configs.into_iter().filter(wanted).collect(), None),
        Err(refused) => (Vec::new(), Some(refused)),
    };
    DescribeConfigsResult {
        error_code: error.as_ref().map_or(0, |Refused(code, _)| code.number()),
        error_message: error.map(|Refused(_, message)| message),
        resource_type,
        resource_name,
        configs,
    }
}

fn topic(door: &Door, name: &str, synonyms: bool) -> Result<Vec<DescribedConfig>, Refused> {
    let entries = door.broker.topic_config_entries(name)?;
    let replicas = door.broker.fewest_replicas(name)?;
    let promised = promises::of(replicas).map(|(name, value)| DescribedConfig {
        name: name.to_owned(),
        config_type: if value == "false" { KIND_BOOLEAN } else { KIND_INT },
        value: Some(value),
        read_only: true,
        config_source: SOURCE_DEFAULT,
        ..Default::default()
    });
    Ok(entries.iter().map(|entry| describe_entry(entry, synonyms)).chain(promised).collect())
}

fn describe_entry(entry: &ConfigEntry, synonyms: bool) -> DescribedConfig {
    let (value, source) = effective(entry);
    let layers = [
        (entry.topic.as_deref(), SOURCE_TOPIC, entry.name.to_owned()),
        (entry.broker.as_deref(), SOURCE_STATIC_BROKER, format!("log.{}", entry.name)),
        (Some(entry.built_in), SOURCE_DEFAULT, format!("log.{}", entry.name)),
    ];
    let synonym = |(value, source, name): (Option<&str>, i8, String)| {
        value.map(|value| ConfigSynonym { name, value: Some(value.to_owned()), source })
    };
    DescribedConfig {
        name: entry.name.to_owned(),
        value: Some(value.to_owned()),
        config_source: source,
        synonyms: if synonyms { layers.into_iter().filter_map(synonym).collect() } else { Vec::new() },
        config_type: kind(entry.name, entry.built_in),
        ..Default::default()
    }
}

/// What kind of value a key takes, by what its default looks like.
fn kind(name: &str, default: &str) -> i8 {
    match (name, default) {
        (name, _) if LISTS.contains(&name) => KIND_LIST,
        (_, "true" | "false") => KIND_BOOLEAN,
        (name, default) if default.parse::<i64>().is_ok() => {
            if name.ends_with("bytes") && name != "retention.bytes" {
                KIND_INT
            } else {
                KIND_LONG
            }
        }
        _ => KIND_STRING,
    }
}

/// A broker is described by itself only: another does not know its configuration.
fn broker(door: &Door, name: &str) -> Result<Vec<DescribedConfig>, Refused> {
    let own = door.broker.id().0.to_string();
    if !name.is_empty() && name != own {
        return Err(Refused(ErrorCode::InvalidRequest, format!("this is broker {own}: ask broker {name} itself")));
    }
    let config = door.broker.config();
    let entry = |name: &str, value: String, config_type| DescribedConfig {
        name: name.to_owned(),
        value: Some(value),
        read_only: true,
        config_source: SOURCE_STATIC_BROKER,
        config_type,
        ..Default::default()
    };
    let none_of_its_own = door.broker.config_entries(&BTreeMap::new());
    let default_of =
        |key| none_of_its_own.iter().find(|entry| entry.name == key).map_or("", |entry| effective(entry).0);
    let advertised = config.kafka.listener.advertised.as_ref().unwrap_or(&config.kafka.listener.listen);
    Ok(vec![
        entry("advertised.listeners", format!("PLAINTEXT://{advertised}"), KIND_STRING),
        entry("auto.create.topics.enable", config.kafka.auto_create_topics.to_string(), KIND_BOOLEAN),
        entry("broker.id", own, KIND_INT),
        entry("compression.type", default_of("compression.type").to_owned(), KIND_STRING),
        entry("connections.max.idle.ms", config.kafka.idle_timeout.as_millis().to_string(), KIND_LONG),
        entry("listeners", format!("PLAINTEXT://{}", config.kafka.listener.listen), KIND_STRING),
        entry("log.dirs", config.data_dir.display().to_string(), KIND_LIST),
        entry("message.max.bytes", config.limits.record_bytes_max.to_string(), KIND_INT),
        entry("num.partitions", config.kafka.num_partitions.to_string(), KIND_INT),
        entry(
            "socket.request.max.bytes",
            config.kafka.request_bytes_max.min(config.limits.inflight_bytes_max).to_string(),
            KIND_INT,
        ),
    ])
}

type Changes = BTreeMap<String, Option<String>>;

/// What a request changes twice, and so not at all.
struct Twice(BTreeSet<(i8, String)>);

fn resources_named_twice<'a>(resources: impl Iterator<Item = (i8, &'a String)>) -> Twice {
    let mut seen = BTreeSet::new();
    Twice(resources.filter(|one| !seen.insert(*one)).map(|(kind, name)| (kind, name.clone())).collect())
}

impl Twice {
    fn refuse(&self, kind: i8, name: &str, changes: Result<Changes, Refused>) -> Result<Changes, Refused> {
        match self.0.contains(&(kind, name.to_owned())) {
            true => Err(Refused(ErrorCode::InvalidRequest, format!("{name:?} is named twice"))),
            false => changes,
        }
    }
}

fn no_value(key: &str) -> Refused {
    Refused(ErrorCode::InvalidRequest, format!("{key} has no value"))
}

/// AlterConfigs: what is not named goes back to its default.
pub(super) async fn alter(door: &Arc<Door>, request: AlterConfigsRequest) -> Response {
    let mut responses = Vec::with_capacity(request.resources.len());
    let time = Time::of(TIMEOUT);
    await_joined(door, &time).await;
    let twice = resources_named_twice(request.resources.iter().map(|one| (one.resource_type, &one.resource_name)));
    for (at, resource) in request.resources.into_iter().enumerate() {
        make_way(at).await;
        let name = resource.resource_name;
        let null = resource.configs.iter().find(|config| config.value.is_none()).map(|config| config.name.clone());
        let changes = door.broker.topic_config_entries(&name).map_err(Refused::from).map(|entries| {
            let set = entries.into_iter().filter(|entry| entry.topic.is_some());
            let mut changes: Changes = set.map(|entry| (entry.name.to_owned(), None)).collect();
            changes.extend(resource.configs.into_iter().map(|config| (config.name, config.value)));
            changes
        });
        let changes = match null {
            Some(key) => Err(no_value(&key)),
            None => twice.refuse(resource.resource_type, &name, changes),
        };
        responses.push(alter_one(door, resource.resource_type, name, changes, request.validate_only, &time).await);
    }
    Response::AlterConfigs(AlterConfigsResponse { responses, ..Default::default() })
}

/// IncrementalAlterConfigs: only what is named changes.
pub(super) async fn alter_incrementally(door: &Arc<Door>, request: IncrementalAlterConfigsRequest) -> Response {
    let mut responses = Vec::with_capacity(request.resources.len());
    let time = Time::of(TIMEOUT);
    await_joined(door, &time).await;
    let twice = resources_named_twice(request.resources.iter().map(|one| (one.resource_type, &one.resource_name)));
    for (at, resource) in request.resources.into_iter().enumerate() {
        make_way(at).await;
        let keys_twice = named_twice(resource.configs.iter().map(|change| change.name.as_str()));
        let change = |change: ConfigChange| change_one(door, &resource.resource_name, change);
        let changes = match keys_twice.first() {
            Some(key) => Err(Refused(ErrorCode::InvalidRequest, format!("{key} is named twice"))),
            None => resource.configs.into_iter().map(change).collect(),
        };
        let changes = twice.refuse(resource.resource_type, &resource.resource_name, changes);
        let (kind, name) = (resource.resource_type, resource.resource_name);
        responses.push(alter_one(door, kind, name, changes, request.validate_only, &time).await);
    }
    Response::IncrementalAlterConfigs(IncrementalAlterConfigsResponse { responses, ..Default::default() })
}

/// What a key is to be, `None` for its default.
fn change_one(door: &Door, topic: &str, change: ConfigChange) -> Result<(String, Option<String>), Refused> {
    let ConfigChange { name, operation, value } = change;
    let refuse = |why: String| Err(Refused(ErrorCode::InvalidConfig, why));
    match (operation, value) {
        (DELETE, _) => Ok((name, None)),
        (SET | APPEND | SUBTRACT, None) => Err(no_value(&name)),
        (other, None) => refuse(format!("{name}: there is no operation {other}")),
        (SET, Some(value)) => Ok((name, Some(value))),
        (APPEND | SUBTRACT, Some(_)) if !LISTS.contains(&name.as_str()) => {
            refuse(format!("{name}: operation {operation} is for lists, and it is none"))
        }
        (APPEND | SUBTRACT, Some(value)) => {
            let entries = door.broker.topic_config_entries(topic)?;
            let now = entries.iter().find(|entry| entry.name == name).map_or("", |entry| effective(entry).0);
            let named: Vec<&str> = value.split(',').map(str::trim).collect();
            let mut list: Vec<&str> = now.split(',').filter(|word| !word.is_empty() && !named.contains(word)).collect();
            if operation == APPEND {
                list.extend(named);
            }
            Ok((name, Some(list.join(","))))
        }
        (other, Some(_)) => refuse(format!("{name}: there is no operation {other}")),
    }
}

async fn alter_one(
    door: &Arc<Door>,
    resource_type: i8,
    resource_name: String,
    changes: Result<Changes, Refused>,
    validate_only: bool,
    time: &Time,
) -> AlteredResource {
    let done = async {
        if resource_type != TOPIC {
            let why = "a broker's configuration is changed in its file and by a restart".to_owned();
            return Err(Refused(ErrorCode::InvalidRequest, why));
        }
        let mut changes = changes?;
        let replicas = door.broker.fewest_replicas(&resource_name)?;
        for (key, _) in promises::of(replicas) {
            let value = changes.remove(key).flatten();
            value.and_then(|value| promises::check(key, &value, replicas)).unwrap_or(Ok(()))?;
        }
        door.broker.check_topic_changes(&resource_name, &changes)?;
        if !validate_only && !changes.is_empty() {
            door.broker.alter_topic(&resource_name, None, changes, time.left()?).await?;
        }
        Ok(())
    };
    let refused = done.await.err();
    AlteredResource {
        error_code: refused.as_ref().map_or(0, |Refused(code, _)| code.number()),
        error_message: refused.map(|Refused(_, message)| message),
        resource_type,
        resource_name,
    }
}
