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
    /// Reads its text.
    pub set: Set,
}

macro_rules! keys {
    ($($name:literal => |$config:ident, $text:ident| $set:expr;)+) => {
        /// Every key but those of `log.*`.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            set: |$config, $text| {
                $set;
                Ok(())
            },
        },)+];
    };
}

keys! {
    "broker_id" => |c, t| c.broker_id = BrokerId(number(t)?);
    "data_dir" => |c, t| c.data_dir = non_empty(t)?.into();
    "bootstrap" => |c, t| c.bootstrap = bootstrap(t)?;
    "allow_insecure" => |c, t| c.allow_insecure = boolean(t)?;
    "http.listen" => |c, t| c.http.listen = address(t)?;
    "http.advertised" => |c, t| c.http.advertised = Some(address(t)?);
    "http.hosts" => |c, t| c.http_hosts = list(t).map(str::to_ascii_lowercase).collect();
    "peer.listen" => |c, t| c.peer.listen = address(t)?;
    "peer.advertised" => |c, t| c.peer.advertised = Some(address(t)?);
    "limits.record_bytes_max" => |c, t| c.limits.record_bytes_max = at_least(t, 1)?;
    "limits.request_bytes_max" => |c, t| c.limits.request_bytes_max = at_least(t, 1)?;
    "limits.inflight_bytes_max" => |c, t| c.limits.inflight_bytes_max = at_least(t, 1)?;
    "limits.connections_max" => |c, t| c.limits.connections_max = at_least(t, 1)?;
    "limits.header_bytes_max" => |c, t| c.limits.header_bytes_max = at_least(t, 1)?;
    "limits.header_timeout_ms" => |c, t| c.limits.header_timeout = millis(t)?;
    "limits.body_timeout_ms" => |c, t| c.limits.body_timeout = millis(t)?;
    "limits.write_timeout_ms" => |c, t| c.limits.write_timeout = millis(t)?;
    "raft.journal_round_bytes_max" => |c, t| c.raft.journal_round_bytes_max = at_least(t, 4096)?;
    "raft.journal_file_bytes" => |c, t| c.raft.journal_file_bytes = at_least(t, 1 << 16)?;
    "raft.bypass_bytes_min" => |c, t| c.raft.bypass_bytes_min = at_least(t, 1)?;
    "raft.unwritten_bytes_max" => |c, t| c.raft.unwritten_bytes_max = at_least(t, 1)?;
    "raft.checkpoint_journal_bytes" => |c, t| c.raft.checkpoint_journal_bytes = at_least(t, 1)?;
    "raft.checkpoint_interval_ms" => |c, t| c.raft.checkpoint_interval = millis(t)?;
    "raft.segment_bytes_max" => |c, t| c.raft.segment_bytes_max = at_least(t, 4096)?;
    "raft.index_interval_bytes" => |c, t| c.raft.index_interval_bytes = at_least(t, 1)?;
    "raft.tail_cache_bytes" => |c, t| c.raft.tail_cache_bytes = number(t)?;
    "raft.tail_cache_bytes_total" => |c, t| c.raft.tail_cache_bytes_total = number(t)?;
    "raft.append_bytes_max" => |c, t| c.raft.append_bytes_max = at_least(t, 4096)?;
    "raft.heartbeat_ms" => |c, t| c.raft.heartbeat = millis(t)?;
    "raft.election_timeout_ms" => |c, t| c.raft.election_timeout = millis(t)?;
    "raft.ping_interval_ms" => |c, t| c.raft.ping_interval = millis(t)?;
    "raft.silence_max_ms" => |c, t| c.raft.silence_max = millis(t)?;
    "raft.transfer_timeout_ms" => |c, t| c.raft.transfer_timeout = millis(t)?;
    "raft.reserve_produce_bytes" => |c, t| c.raft.reserve_produce_bytes = number(t)?;
    "raft.reserve_append_bytes" => |c, t| c.raft.reserve_append_bytes = number(t)?;
}

/// The prefix of topic defaults; what follows is a topic configuration's own name.
pub const LOG_PREFIX: &str = "log.";

/// Every name, topic defaults included.
pub fn names() -> impl Iterator<Item = String> {
    let log = topic_config::keys().map(|(name, _)| format!("{LOG_PREFIX}{name}"));
    KEYS.iter().map(|key| key.name.to_owned()).chain(log)
}

/// The known name that is nearest to a wrong one.
pub fn nearest(wrong: &str, names: impl Iterator<Item = String>) -> Option<String> {
    names.min_by_key(|name| strsim::damerau_levenshtein(wrong, name))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "not a number in range".to_owned())
}

fn at_least<T: FromStr + PartialOrd + From<u8> + TryFrom<u64>>(text: &str, least: u64) -> Result<T, String> {
    let found: T = number(text)?;
    if T::try_from(least).is_ok_and(|least| found < least) {
        return Err(format!("less than {least}"));
    }
    Ok(found)
}

/// At least 1 ms, at most a day: anything longer is a mistake in the unit.
fn millis(text: &str) -> Result<Duration, String> {
    match number(text)? {
        0 => Err("less than 1".into()),
        ms @ 1..=86_400_000 => Ok(Duration::from_millis(ms)),
        _ => Err("more than a day; the unit is milliseconds".into()),
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
    port.parse::<u16>().map_err(|_| format!("{port:?} is not a port"))?;
    Ok(text.to_owned())
}

fn bootstrap(text: &str) -> Result<BTreeMap<BrokerId, String>, String> {
    let mut found = BTreeMap::new();
    for part in list(text) {
        let (id, at) = part.split_once('@').ok_or_else(|| format!("{part:?} is not id@host:port"))?;
        let id = BrokerId(id.parse().map_err(|_| format!("{id:?} in {part:?} is not a broker id"))?);
        let at = address(at).map_err(|why| format!("{at:?} in {part:?} is {why}"))?;
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
    fn bootstrap_reads_ids_and_addresses() {
        let read = bootstrap("1@127.0.0.1:7090, 2@[::1]:7091,3@c.example:7092").unwrap();
        assert_eq!(read[&BrokerId(2)], "[::1]:7091");
        assert_eq!(read.len(), 3);
        for (wrong, word) in [
            ("127.0.0.1:7090", "127.0.0.1:7090"),
            ("x@127.0.0.1:7090", "\"x\""),
            ("1@127.0.0.1", "127.0.0.1"),
            ("1@127.0.0.1:99999", "99999"),
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
    fn a_slip_of_the_pen_finds_its_key() {
        for (wrong, right) in [("http.listn", "http.listen"), ("brokerid", "broker_id"), ("peer_listen", "peer.listen")]
        {
            assert_eq!(nearest(wrong, names()).as_deref(), Some(right));
        }
    }
}
