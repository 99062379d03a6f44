//! The names configuration goes by: one table of every key, what it sets and how its text is read.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use pontoon_raft::types::BrokerId;

use super::Config;
use crate::catalog::topic_config;

/// Reads a key's text into the configuration. The message says what the text should have been.
type Set = fn(&mut Config, &str) -> Result<(), String>;

/// One key.
pub struct Key {
    /// Its name, dotted.
    pub name: &'static str,
    /// Its default, as its text would be; empty if there is none.
    pub default: &'static str,
    /// What it means, for docs/CONFIGURATION.md. Units stand in the name.
    pub doc: &'static str,
    /// Reads its text.
    pub set: Set,
}

macro_rules! keys {
    ($($name:literal, $default:literal, $doc:literal => |$config:ident, $text:ident| $set:expr;)+) => {
        /// Every key but those of `log.*`. `docs/CONFIGURATION.md` is held to this table by a test.
        #[rustfmt::skip]
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            default: $default,
            doc: $doc,
            set: |$config, $text| {
                $set;
                Ok(())
            },
        },)+];
    };
}

keys! {
    "broker_id", "", "This broker's number, its own in the cluster. Required." => |c, t| c.broker_id = BrokerId(number(t)?);
    "data_dir", "pontoon-data", "Where its data is. One process at a time; created if it is not there." => |c, t| c.data_dir = non_empty(t)?.into();
    "bootstrap", "", "The initial brokers, `id@host:port` of their peer listeners, the same list on every broker. Required; a broker that is not among them joins them." => |c, t| c.bootstrap = bootstrap(t)?;
    "allow_insecure", "false", "Listen on other addresses than loopback, though there is neither authentication nor encryption." => |c, t| c.allow_insecure = boolean(t)?;
    "http.listen", "127.0.0.1:8090", "Where clients are served over HTTP. Port 0 lets the kernel choose." => |c, t| c.http.listen = address(t)?;
    "http.advertised", "", "The HTTP address that clients and other brokers are told. Unless set: `http.listen`." => |c, t| c.http.advertised = Some(address(t)?);
    "http.hosts", "", "Further names under which clients may address this broker (`Host`), separated by commas; its own addresses always count." => |c, t| c.http_hosts = list(t).map(str::to_ascii_lowercase).collect();
    "kafka.listen", "127.0.0.1:9092", "Where Kafka clients are served; `off`: nowhere. Port 0 lets the kernel choose." => |c, t| listen_or_off(c, t)?;
    "kafka.advertised", "", "The address that Kafka clients are told. Unless set: `kafka.listen`." => |c, t| c.kafka.listener.advertised = Some(address(t)?);
    "kafka.idle_timeout_ms", "600000", "A Kafka connection on which nothing is asked for so long is closed." => |c, t| c.kafka.idle_timeout = millis(t)?;
    "kafka.inflight_requests_max", "16", "Most requests of one Kafka connection being worked on or waiting to be. Their bytes are a quarter of `limits.inflight_bytes_max` at most, or one request that is larger." => |c, t| c.kafka.inflight_requests_max = at_least(t, 1)?;
    "socket.request.max.bytes", "104857600", "Largest request of a Kafka client; never more than `limits.inflight_bytes_max`. Kafka's clients count on its default." => |c, t| c.kafka.request_bytes_max = at_least(t, 1)?;
    "auto.create.topics.enable", "false", "Whether a Kafka client that asks for a topic that does not exist creates it. `dev`: true." => |c, t| c.kafka.auto_create_topics = boolean(t)?;
    "num.partitions", "1", "Partitions of a topic that a Kafka client creates without naming a number. `dev`: 4." => |c, t| c.kafka.num_partitions = at_least(t, 1)?;
    "offsets.topic.num.partitions", "16", "Over how many partitions consumer groups are spread; fixed when the first group is made." => |c, t| c.kafka.offsets_partitions = at_least(t, 1)?;
    "offsets.retention.minutes", "10080", "How long committed offsets of a consumer group without members are kept." => |c, t| c.kafka.offsets_retention = Duration::from_secs(60 * at_least::<u64>(t, 1)?.min(u64::from(u32::MAX)));
    "offsets.retention.check.interval.ms", "60000", "How often committed offsets that are older than that are looked for." => |c, t| c.kafka.offsets_retention_check_interval = millis(t)?;
    "group.max.size", "2000", "Most members of a consumer group, those who are about to join among them. Any number may be set, Kafka's default (2147483647) too: `limits.groups_bytes_max` holds in any case, and each takes more than 512 bytes of it." => |c, t| c.kafka.group_members_max = at_least(t, 1)?;
    "peer.listen", "127.0.0.1:7090", "Where other brokers are served. Unless set: this broker's address in `bootstrap`." => |c, t| c.peer.listen = address(t)?;
    "peer.advertised", "", "The peer address that other brokers are told. Unless set: `peer.listen`." => |c, t| c.peer.advertised = Some(address(t)?);
    "limits.record_bytes_max", "1048588", "Largest record: key, value and headers together. A topic's `max.message.bytes` takes its place." => |c, t| c.limits.record_bytes_max = at_least(t, 1)?;
    "limits.request_bytes_max", "16777216", "Largest body of a request." => |c, t| c.limits.request_bytes_max = at_least(t, 1)?;
    "limits.inflight_bytes_max", "268435456", "Most bytes of requests being worked on at once; as many again of answers to fetches and about groups, and of `acks=0` batches that no log has yet." => |c, t| c.limits.inflight_bytes_max = at_least(t, 1)?;
    "limits.connections_max", "10000", "Most connections, over HTTP and over Kafka each; never more than a sixth of RLIMIT_NOFILE." => |c, t| c.limits.connections_max = at_least(t, 1)?;
    "limits.header_bytes_max", "32768", "Largest head of a request, path and headers together; at least 8192." => |c, t| c.limits.header_bytes_max = at_least(t, 1)?;
    "limits.header_timeout_ms", "60000", "Longest wait for a request's head, also on an idle connection." => |c, t| c.limits.header_timeout = millis(t)?;
    "limits.body_timeout_ms", "30000", "Longest wait for a request's whole body." => |c, t| c.limits.body_timeout = millis(t)?;
    "limits.write_timeout_ms", "60000", "Longest that a client may leave an answer unread before its connection is closed." => |c, t| c.limits.write_timeout = millis(t)?;
    "limits.groups_bytes_max", "67108864", "Most bytes of the consumer groups of each partition of `__consumer_offsets`: names, members, committed offsets, and some for each. What would make them more is refused." => |c, t| c.limits.groups_bytes_max = at_least(t, 1 << 16)?;
    "retention.check_interval_ms", "30000", "How often each partition is looked at for records to let go and segments to close." => |c, t| c.retention_check_interval = millis(t)?;
    "producer.id.expiration.ms", "86400000", "An idempotent producer of which a partition has taken nothing for so long is forgotten there. Its leader counts, by its own setting and no further back than its own start, and looks every `retention.check_interval_ms`." => |c, t| c.producer_id_expiration = Duration::from_millis(at_least::<u32>(t, 1)?.into());
    "catalog.snapshot_entries", "10000", "The cluster's metadata (the catalog) is a log that is cut behind a snapshot every so many entries." => |c, t| c.catalog_snapshot_entries = at_least(t, 1)?;
    "metrics.partitions", "false", "`/metrics` shows each partition that the broker leads, too: thousands of them are many series." => |c, t| c.metrics_partitions = boolean(t)?;
    "metrics.groups_max", "500", "Most consumer groups that `/metrics` shows by name, those furthest behind first; with `metrics.partitions` also the most of their partitions." => |c, t| c.metrics_groups_max = number(t)?;
    "raft.journal_round_bytes_max", "4194304", "Most bytes of one journal round (one write, one fdatasync)." => |c, t| c.raft.journal_round_bytes_max = at_least(t, 4096)?;
    "raft.journal_file_bytes", "67108864", "Size of one journal file; written in full before it is used." => |c, t| c.raft.journal_file_bytes = at_least(t, 1 << 16)?;
    "raft.bypass_bytes_min", "1048576", "An append of at least so many bytes goes to its segment directly, and only its mention to the journal." => |c, t| c.raft.bypass_bytes_min = at_least(t, 1)?;
    "raft.unwritten_bytes_max", "67108864", "How many bytes may be durable in the journal and not yet written to their segments." => |c, t| c.raft.unwritten_bytes_max = at_least(t, 1)?;
    "raft.checkpoint_journal_bytes", "67108864", "Bytes appended, or written to the journal, after which a checkpoint is taken." => |c, t| c.raft.checkpoint_journal_bytes = at_least(t, 1)?;
    "raft.checkpoint_interval_ms", "60000", "Longest time between checkpoints while something is written." => |c, t| c.raft.checkpoint_interval = millis(t)?;
    "raft.segment_bytes_max", "268435456", "A segment file is closed at this size, whatever its topic says." => |c, t| c.raft.segment_bytes_max = at_least(t, 4096)?;
    "raft.index_interval_bytes", "16384", "One index entry every so many bytes of segment." => |c, t| c.raft.index_interval_bytes = at_least(t, 1)?;
    "raft.tail_cache_bytes", "8388608", "Bytes of newest records that each partition keeps in memory." => |c, t| c.raft.tail_cache_bytes = number(t)?;
    "raft.tail_cache_bytes_total", "268435456", "Bytes of newest records that all partitions of the broker keep in memory together." => |c, t| c.raft.tail_cache_bytes_total = number(t)?;
    "raft.append_bytes_max", "1048576", "Most bytes of one replication request." => |c, t| c.raft.append_bytes_max = at_least(t, 4096)?;
    "raft.catch_up_bytes_per_second", "16777216", "Bytes per second at which replicas that fell behind catch up, all those led by this broker together; 0: no limit. What production adds meanwhile does not count. Gives way while commits wait for them." => |c, t| c.raft.catch_up_bytes_per_second = number(t)?;
    "raft.heartbeat_ms", "1000", "Raft's heartbeat while something happens in a group; an idle one is sent one every half `raft.election_timeout_ms`. The death of a broker is seen by the pings below, not by this." => |c, t| c.raft.heartbeat = millis(t)?;
    "raft.election_timeout_ms", "4000", "Raft's own election timeout, the fallback: drawn between this and twice this. At least twice `raft.heartbeat_ms`." => |c, t| c.raft.election_timeout = millis(t)?;
    "raft.ping_interval_ms", "50", "Interval of the pings between brokers." => |c, t| c.raft.ping_interval = millis(t)?;
    "raft.silence_max_ms", "1000", "Silence after which a broker is declared dead. At least twice `raft.ping_interval_ms`." => |c, t| c.raft.silence_max = millis(t)?;
    "raft.transfer_timeout_ms", "500", "A transfer of leadership that brought no new leader within this is undone." => |c, t| c.raft.transfer_timeout = millis(t)?;
    "raft.scrub_interval_ms", "3600000", "Pause before each round of the background scrub, the first one too; it reads every file and compares its checksums." => |c, t| c.raft.scrub_interval = millis(t)?;
    "raft.scrub_bytes_per_second", "8388608", "How fast the scrub reads; 0 turns it off." => |c, t| c.raft.scrub_bytes_per_second = number(t)?;
    "raft.reserve_produce_bytes", "536870912", "Free bytes of the disk below which produce is refused (`STORAGE_FULL`)." => |c, t| c.raft.reserve_produce_bytes = number(t)?;
    "raft.reserve_append_bytes", "268435456", "Free bytes of the disk below which followers take no more records. At most `raft.reserve_produce_bytes`." => |c, t| c.raft.reserve_append_bytes = number(t)?;
}

/// What each key of `log.*` means, for docs/CONFIGURATION.md.
#[rustfmt::skip]
pub const TOPIC_DOCS: &[(&str, &str)] = &[
    ("acks.floor", "The least acknowledgement that is granted, whatever a producer asks for: `none`, `leader`, `all` or `every`."),
    ("cleanup.policy", "What becomes of old records: `delete`."),
    ("compression.type", "`producer`: batches are stored as they came. `uncompressed`, `gzip`, `snappy`, `lz4`, `zstd`: the leader compresses so what came otherwise, which takes its processor."),
    ("delete.retention.ms", "How long deletions are kept in a compacted topic. There is none here, so that it has no effect, as in Kafka with `cleanup.policy=delete`; tools set it all the same."),
    ("max.message.bytes", "Largest record: key, value and headers together. Unless set: `limits.record_bytes_max`. At most 64 MiB."),
    ("message.timestamp.type", "`CreateTime`: timestamps are the producer's. `LogAppendTime`: the leader's clock when it appends the batch, for all its records."),
    ("retention.bytes", "A partition that is larger loses its oldest segments; -1: no limit."),
    ("retention.ms", "Records that are older may be removed, a segment at a time; -1: none is."),
    ("segment.bytes", "A segment is closed at this size, and can be removed from then on."),
    ("segment.ms", "A segment is closed at this age."),
];

/// The prefix of topic defaults; what follows is a topic configuration's own name.
pub const LOG_PREFIX: &str = "log.";

/// Every name, topic defaults included.
pub fn names() -> impl Iterator<Item = String> {
    let log = topic_config::keys().map(|(name, _)| format!("{LOG_PREFIX}{name}"));
    KEYS.iter().map(|key| key.name.to_owned()).chain(log)
}

fn listen_or_off(config: &mut Config, text: &str) -> Result<(), String> {
    config.kafka.enabled = text != "off";
    if config.kafka.enabled {
        config.kafka.listener.listen = address(text).map_err(|why| format!("{why}, nor off"))?;
    }
    Ok(())
}

/// A number that a key can have. Its largest stands in the message, unless nobody would come near it.
trait Whole: FromStr + PartialOrd + TryFrom<u64> {
    const LARGEST: Option<u32>;
}

impl Whole for u32 {
    const LARGEST: Option<u32> = Some(Self::MAX);
}
impl Whole for u64 {
    const LARGEST: Option<u32> = None;
}
impl Whole for usize {
    const LARGEST: Option<u32> = None;
}

fn number<T: Whole>(text: &str) -> Result<T, String> {
    at_least(text, 0)
}

fn at_least<T: Whole>(text: &str, least: u64) -> Result<T, String> {
    let found: Option<T> = text.parse().ok();
    let large_enough = |found: &T| T::try_from(least).is_ok_and(|least| *found >= least);
    found.filter(large_enough).ok_or_else(|| match T::LARGEST {
        Some(most) => format!("must be a whole number from {least} to {most}"),
        None => format!("must be a whole number, {least} or more"),
    })
}

/// At least 1 ms, at most a day: anything longer is a mistake in the unit.
fn millis(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(ms @ 1..=86_400_000) => Ok(Duration::from_millis(ms)),
        _ => Err("must be a whole number of milliseconds from 1 to 86400000 (a day)".into()),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "neither true nor false".to_owned())
}

fn non_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() { Err("empty".into()) } else { Ok(text) }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// `host:port`, `[v6]:port`.
pub fn address(text: &str) -> Result<String, String> {
    let wrong = || "not host:port".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !bracketed) || host.contains(['@', '/', ' ']) {
        return Err(wrong());
    }
    port.parse::<u16>().map_err(|_| format!("{port} is not a port"))?;
    Ok(text.to_owned())
}

fn bootstrap(text: &str) -> Result<BTreeMap<BrokerId, String>, String> {
    let mut found = BTreeMap::new();
    for part in list(text) {
        // Of several, the one that is wrong.
        let wrong = |why: String| if part == text { why } else { format!("{part:?}: {why}") };
        let (id, at) = part.split_once('@').ok_or_else(|| wrong("not id@host:port".to_owned()))?;
        let id = BrokerId(id.parse().map_err(|_| wrong(format!("{id:?} is not a broker id")))?);
        let at = address(at).map_err(wrong)?;
        if found.insert(id, at).is_some() {
            return Err(format!("broker {id} is named twice"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(BrokerId(0), "data".into())
    }

    #[test]
    fn each_key_has_one_row_and_reads_something() {
        for key in KEYS {
            assert_eq!(KEYS.iter().filter(|other| other.name == key.name).count(), 1, "{}", key.name);
            let samples = ["100000", "127.0.0.1:1", "true", "1@127.0.0.1:1"];
            assert!(samples.iter().any(|sample| (key.set)(&mut config(), sample).is_ok()), "{}", key.name);
        }
    }

    #[test]
    fn every_default_is_what_the_code_runs_with() {
        let untouched = Config::new(BrokerId(0), "pontoon-data".into());
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            let mut config = untouched.clone();
            (key.set)(&mut config, key.default).unwrap_or_else(|why| panic!("{} = {}: {why}", key.name, key.default));
            assert_eq!(config, untouched, "{} = {} is not the default", key.name, key.default);
            let others = ["4097000", "86000", "127.0.0.9:9", "true", "elsewhere"];
            let changed = others.iter().any(|other| {
                let mut config = untouched.clone();
                (key.set)(&mut config, other).is_ok() && config != untouched
            });
            assert!(changed, "{} changes nothing", key.name);
        }
    }

    fn topic_doc(name: &str) -> &'static str {
        TOPIC_DOCS.iter().find(|(key, _)| *key == name).map(|(_, doc)| *doc).unwrap_or_else(|| panic!("{name}: no doc"))
    }

    /// The tables of docs/CONFIGURATION.md.
    fn documented() -> String {
        let row = |name: &str, default: &str, doc: &str| {
            let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
            format!("| `{name}` | {default} | {doc} |\n")
        };
        let mut text = String::from("| key | default | meaning |\n|---|---|---|\n");
        KEYS.iter().for_each(|key| text += &row(key.name, key.default, key.doc));
        text += "\n### Topics' defaults\n\n| key | default | meaning |\n|---|---|---|\n";
        for (name, default) in topic_config::keys() {
            text += &row(&format!("{LOG_PREFIX}{name}"), default, topic_doc(name));
        }
        text
    }

    /// With `UPDATE_DOCS=1` the file is written instead.
    #[test]
    fn the_documented_keys_are_those_of_the_code() {
        const BEGIN: &str = "<!-- keys: held to the code by a test; UPDATE_DOCS=1 cargo test documented_keys -->\n";
        const END: &str = "<!-- end of keys -->";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIGURATION.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(BEGIN).expect("the first marker");
        let (found, after) = rest.split_once(END).expect("the last marker");
        let wanted = format!("\n{}\n", documented());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            return std::fs::write(path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        }
        assert_eq!(found, wanted, "docs/CONFIGURATION.md is not what the code says");
    }

    #[test]
    fn bootstrap_reads_ids_and_addresses() {
        let read = bootstrap("1@127.0.0.1:7090, 2@[::1]:7091,3@c.example:7092").unwrap();
        assert_eq!(read[&BrokerId(2)], "[::1]:7091");
        assert_eq!(read.len(), 3);
        for (wrong, word) in [
            ("127.0.0.1:7090", "not id@host:port"),
            ("x@127.0.0.1:7090", "\"x\""),
            ("1@127.0.0.1", "not host:port"),
            ("1@127.0.0.1:99999", "99999 is not a port"),
            ("1@a:1,2@b:99999", "\"2@b:99999\": 99999 is not a port"),
            ("1@a:1,1@b:1", "broker 1 is named twice"),
        ] {
            let message = bootstrap(wrong).unwrap_err();
            assert!(message.contains(word), "{wrong}: {message}");
        }
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for wrong in ["", "8090", ":8090", "localhost", "::1:8090", "http://a:1", "a:b", "a:65536", "a b:1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let set = |name: &str, text: &str| {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            (key.set)(&mut config(), text)
        };
        for (name, text) in [
            ("broker_id", "-1"),
            ("broker_id", "4294967296"),
            ("allow_insecure", "yes"),
            ("limits.connections_max", "0"),
            ("limits.body_timeout_ms", "0"),
            ("limits.body_timeout_ms", "86400001"),
            ("raft.segment_bytes_max", "100"),
            ("raft.heartbeat_ms", "1s"),
            ("data_dir", ""),
        ] {
            assert!(set(name, text).is_err(), "{name} = {text}");
        }
    }

    #[test]
    fn the_kafka_listener_can_be_turned_off_and_on() {
        let set = |config: &mut Config, text: &str| {
            let key = KEYS.iter().find(|key| key.name == "kafka.listen").unwrap();
            (key.set)(config, text)
        };
        let mut config = config();
        set(&mut config, "off").unwrap();
        assert!(!config.kafka.enabled);
        set(&mut config, "127.0.0.1:9").unwrap();
        assert!(config.kafka.enabled && config.kafka.listener.listen == "127.0.0.1:9");
        assert!(set(&mut config, "no").unwrap_err().contains("off"));
    }
}
