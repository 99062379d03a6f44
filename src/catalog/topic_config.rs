//! Topic configuration: Kafka's names, checked values, defaults.
//!
//! A topic stores only what was set for it; [`TopicConfig::resolve`] lays that over the broker's `log.*` defaults and the
//! built-in ones. The rules here are applied at the catalog's serial point, so a change of them needs a new feature level
//! ([`super::command`]): two versions must not judge one command differently. What is newer is refused there ([`check_at`]) as long as
//! any broker has registered with less.

use std::collections::BTreeMap;

use super::command::COMPRESSION_LEVEL;
use crate::nearest::hint;
use crate::record_batch::Compression;

/// The least acknowledgement a topic grants, whatever a producer asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AcksFloor {
    /// The producer decides.
    #[default]
    None,
    /// At least the leader's disk.
    Leader,
    /// At least a majority's disks.
    All,
    /// Every replica's disk.
    Every,
}

/// A topic's effective configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// `acks.floor`. Default: none.
    pub acks_floor: AcksFloor,
    /// `compression.type`: what the leader compresses batches with that came otherwise. `None` is `producer`, the default: as they came.
    pub stored_as: Option<Compression>,
    /// `max.message.bytes`: the largest record, in bytes. Default: 1 MiB and the 12 bytes that Kafka adds, as
    /// `limits.record_bytes_max`, which holds where neither topic nor broker sets this.
    pub max_message_bytes: u64,
    /// `message.timestamp.type` is `LogAppendTime`: the leader's clock replaces the producers' timestamps. Default: no.
    pub log_append_time: bool,
    /// `retention.ms`: records older than this may be removed; `None`: kept. Default: seven days.
    pub retention_ms: Option<u64>,
    /// `retention.bytes`: a partition larger than this loses its oldest segments; `None`: no limit. Default: none.
    pub retention_bytes: Option<u64>,
    /// `segment.bytes`: a segment is closed at this size. Default: 256 MiB.
    pub segment_bytes: u64,
    /// `segment.ms`: a segment is closed at this age. Default: seven days.
    pub segment_ms: u64,
}

/// What values a key takes.
enum Kind {
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number in this range.
    Number(i64, i64),
}

/// Every key: name, values, default.
const KEYS: &[(&str, Kind, &str)] = &[
    ("acks.floor", Kind::Word(&["none", "leader", "all", "every"]), "none"),
    ("cleanup.policy", Kind::Word(&["delete"]), "delete"),
    ("compression.type", Kind::Word(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]), "producer"),
    ("delete.retention.ms", Kind::Number(0, i64::MAX), "86400000"),
    ("max.message.bytes", Kind::Number(1, 64 << 20), "1048588"),
    ("message.timestamp.type", Kind::Word(&["CreateTime", "LogAppendTime"]), "CreateTime"),
    ("retention.bytes", Kind::Number(-1, i64::MAX), "-1"),
    ("retention.ms", Kind::Number(-1, i64::MAX), "604800000"),
    ("segment.bytes", Kind::Number(1 << 10, 4 << 30), "268435456"),
    ("segment.ms", Kind::Number(1, i64::MAX), "604800000"),
];

/// Checks one key and its value. The error names both, and the nearest key for an unknown one.
pub fn check(key: &str, value: &str) -> Result<(), String> {
    let Some((_, kind, _)) = KEYS.iter().find(|(name, ..)| *name == key) else {
        return Err(unknown_key(key));
    };
    match kind {
        Kind::Word(words) if words.contains(&value) => Ok(()),
        Kind::Word(words) => Err(format!("{key} is {}, not {value:?}", words.join(" or "))),
        Kind::Number(min, max) => match value.parse::<i64>() {
            Ok(number) if (*min..=*max).contains(&number) => Ok(()),
            _ => Err(format!("{key} is a whole number from {min} to {max}, not {value:?}")),
        },
    }
}

/// The feature level from which on a key takes a value; `None`: whatever it is.
fn since(key: &str, value: Option<&str>) -> u32 {
    match (key, value) {
        ("delete.retention.ms", _) => COMPRESSION_LEVEL,
        ("compression.type", Some(value)) if value != "producer" => COMPRESSION_LEVEL,
        _ => 0,
    }
}

/// Checks one key and its value, or that it may be reset, where every broker is of this feature level.
pub(super) fn check_at(level: u32, key: &str, value: Option<&str>) -> Result<(), String> {
    value.map_or_else(|| check_key(key), |value| check(key, value))?;
    if since(key, value) <= level {
        return Ok(());
    }
    let what = value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
    Err(format!("{what} is taken once every broker is of a version that knows it"))
}

/// Checks that a key exists (for resetting it).
pub fn check_key(key: &str) -> Result<(), String> {
    if KEYS.iter().any(|(name, ..)| *name == key) { Ok(()) } else { Err(unknown_key(key)) }
}

/// Every key with its built-in default, in order.
pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    KEYS.iter().map(|(name, _, default)| (*name, *default))
}

fn unknown_key(key: &str) -> String {
    let hint = hint(key, KEYS.iter().map(|(name, ..)| *name));
    format!("unknown topic configuration key {key:?}{hint}")
}

impl TopicConfig {
    /// The effective configuration: the topic's own values, over the broker's, over the built-in ones. Values that do not
    /// check (a newer version's) count as absent.
    pub fn resolve(topic: &BTreeMap<String, String>, broker: &BTreeMap<String, String>) -> Self {
        let word = |key: &str| -> String {
            let set =
                [topic, broker].into_iter().find_map(|map| map.get(key).filter(|value| check(key, value).is_ok()));
            let built_in = || KEYS.iter().find(|(name, ..)| *name == key).map_or("", |(_, _, default)| default);
            set.map_or_else(|| built_in().to_owned(), Clone::clone)
        };
        let number = |key: &str| word(key).parse::<i64>().unwrap_or(-1);
        Self {
            acks_floor: match word("acks.floor").as_str() {
                "leader" => AcksFloor::Leader,
                "all" => AcksFloor::All,
                "every" => AcksFloor::Every,
                _ => AcksFloor::None,
            },
            stored_as: match word("compression.type").as_str() {
                "uncompressed" => Some(Compression::None),
                "gzip" => Some(Compression::Gzip),
                "snappy" => Some(Compression::Snappy),
                "lz4" => Some(Compression::Lz4),
                "zstd" => Some(Compression::Zstd),
                _ => None,
            },
            max_message_bytes: number("max.message.bytes").unsigned_abs(),
            log_append_time: word("message.timestamp.type") == "LogAppendTime",
            retention_ms: u64::try_from(number("retention.ms")).ok(),
            retention_bytes: u64::try_from(number("retention.bytes")).ok(),
            segment_bytes: number("segment.bytes").unsigned_abs(),
            segment_ms: number("segment.ms").unsigned_abs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_default_is_legal() {
        for (key, default) in keys() {
            assert_eq!(check(key, default), Ok(()));
        }
    }

    /// Whoever changes what is taken must say from which level on: two versions must judge a command alike.
    #[test]
    fn what_is_taken_at_each_level_stands_here() {
        let shown = |level: u32| -> Vec<String> {
            let taken = |key: &str, value: &str| check_at(level, key, Some(value)).is_ok();
            let of = |(key, kind, default): &(&str, Kind, &str)| match kind {
                Kind::Word(words) => {
                    let words: Vec<_> = words.iter().copied().filter(|word| taken(key, word)).collect();
                    format!("{key}: {}", words.join(" "))
                }
                Kind::Number(min, max) => {
                    let all = [default, &*min.to_string(), &*max.to_string()].iter().all(|value| taken(key, value));
                    assert_eq!(all, check_at(level, key, None).is_ok());
                    if all { format!("{key}: {min} to {max}") } else { format!("{key}:") }
                }
            };
            KEYS.iter().map(of).collect()
        };
        let mut taken = [
            "acks.floor: none leader all every",
            "cleanup.policy: delete",
            "compression.type: producer",
            "delete.retention.ms:",
            "max.message.bytes: 1 to 67108864",
            "message.timestamp.type: CreateTime LogAppendTime",
            "retention.bytes: -1 to 9223372036854775807",
            "retention.ms: -1 to 9223372036854775807",
            "segment.bytes: 1024 to 4294967296",
            "segment.ms: 1 to 9223372036854775807",
        ];
        assert_eq!(shown(0), taken);
        assert_eq!(shown(COMPRESSION_LEVEL - 1), taken);
        taken[2] = "compression.type: producer uncompressed gzip snappy lz4 zstd";
        taken[3] = "delete.retention.ms: 0 to 9223372036854775807";
        assert_eq!(shown(COMPRESSION_LEVEL), taken);
        let why = check_at(3, "compression.type", Some("gzip")).unwrap_err();
        assert!(why.starts_with("compression.type=gzip is taken once"), "{why}");
        assert!(check_at(3, "compression.type", None).is_ok());
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let error = check("retention.sm", "1").unwrap_err();
        assert!(error.contains("\"retention.sm\"") && error.contains("\"retention.ms\""), "{error}");
        assert!(check_key("ack.floor").unwrap_err().contains("acks.floor"));
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        assert!(check("acks.floor", "most").unwrap_err().contains("\"most\""));
        assert!(check("cleanup.policy", "compact").unwrap_err().contains("delete"));
        let codecs = "compression.type is producer or uncompressed or gzip or snappy or lz4 or zstd, not \"brotli\"";
        assert_eq!(check("compression.type", "brotli"), Err(codecs.to_owned()));
        assert!(check("compression.type", "none").is_err(), "Kafka calls it uncompressed");
        assert!(check("compression.gzip.level", "9").unwrap_err().starts_with("unknown"));
        assert!(check("retention.ms", "-2").unwrap_err().contains("-1"));
        assert!(check("retention.ms", "soon").unwrap_err().contains("\"soon\""));
        assert!(check("max.message.bytes", "99999999999999999999").is_err());
    }

    #[test]
    fn the_topics_value_beats_the_brokers_beats_the_built_in() {
        let broker = map(&[("retention.ms", "1000"), ("acks.floor", "all")]);
        let topic = map(&[("acks.floor", "every"), ("retention.bytes", "-1")]);
        let config = TopicConfig::resolve(&topic, &broker);
        assert_eq!(config.acks_floor, AcksFloor::Every);
        assert_eq!((config.retention_ms, config.retention_bytes), (Some(1000), None));
        assert_eq!(config.max_message_bytes, 1_048_588);
        assert_eq!(config.stored_as, None);
        let zstd = map(&[("compression.type", "zstd")]);
        let by = |topic, broker| TopicConfig::resolve(&map(topic), broker).stored_as;
        assert_eq!(by(&[], &zstd), Some(Compression::Zstd));
        assert_eq!(by(&[("compression.type", "producer")], &zstd), None);
        assert!(AcksFloor::Every > AcksFloor::All && AcksFloor::All > AcksFloor::Leader);
    }
}
