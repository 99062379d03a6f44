//! Where a configuration comes from: TOML file, then `PONTOON_*` environment, then flags, each over the one before.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use pontoon_raft::types::BrokerId;

use super::keys::{KEYS, LOG_PREFIX, names};
use super::{Config, ConfigError, refuse};
use crate::catalog::topic_config;
use crate::nearest::hint;

/// Variables that begin with `PONTOON_` and are no configuration of a broker.
const OTHER_VARIABLES: &[&str] =
    &["PONTOON_SERVER", "PONTOON_CONFIG", "PONTOON_LOG", "PONTOON_LOG_FORMAT", "PONTOON_BIN"];
/// What Kubernetes sets in every pod of a namespace that has a service named `pontoon`.
const KUBERNETES_VARIABLES: &[&str] = &["PONTOON_SERVICE_", "PONTOON_PORT"];

/// Where a setting was found, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of this file.
    File(PathBuf),
    /// This variable.
    Environment(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(variable) => write!(f, "the environment ({variable})"),
            Self::Flag => f.write_str("the command line"),
        }
    }
}

/// One key's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The dotted key.
    pub key: String,
    /// Its text; lists are separated by commas.
    pub text: String,
    /// Where it was found.
    pub source: Source,
}

/// Puts a configuration together and checks it. Returns it with the warnings of [`Config::validate`].
///
/// `file` is read if given; `environment` are all variables of the process; `flags` are keys and texts.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<(Config, Vec<String>), ConfigError> {
    let mut settings = match file {
        Some(path) => from_file(path)?,
        None => Vec::new(),
    };
    settings.extend(from_environment(environment)?);
    settings.extend(flags.iter().map(|(key, text)| Setting {
        key: key.clone(),
        text: text.clone(),
        source: Source::Flag,
    }));
    let config = build(&settings)?;
    let warnings = config.validate()?;
    Ok((config, warnings))
}

fn build(settings: &[Setting]) -> Result<Config, ConfigError> {
    let mut config = Config::new(BrokerId(0), "pontoon-data".into());
    for setting in settings {
        apply(&mut config, setting)?;
    }
    let given = |key: &str| settings.iter().any(|setting| setting.key == key);
    if !given("broker_id") {
        return refuse("broker_id is missing: give each broker its own number, e.g. --broker-id 1");
    }
    if !given("peer.listen")
        && let Some(address) = config.bootstrap.get(&config.broker_id)
    {
        config.peer.listen.clone_from(address);
    }
    Ok(config)
}

fn apply(config: &mut Config, setting: &Setting) -> Result<(), ConfigError> {
    let Setting { key, text, source } = setting;
    let refused = |why: String| ConfigError(format!("{key} = {text:?} in {source}: {why}"));
    if let Some(topic_key) = key.strip_prefix(LOG_PREFIX)
        && topic_config::check_key(topic_key).is_ok()
    {
        topic_config::check(topic_key, text).map_err(refused)?;
        config.log.insert(topic_key.to_owned(), text.clone());
        return Ok(());
    }
    let Some(known) = KEYS.iter().find(|known| known.name == key) else {
        return refuse(format!("unknown key {key:?} in {source}{}", hint(key, names())));
    };
    (known.set)(config, text).map_err(refused)
}

fn from_file(path: &Path) -> Result<Vec<Setting>, ConfigError> {
    let wrong = |why: String| ConfigError(format!("configuration file {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let mut flat = BTreeMap::new();
    flatten("", &toml::Value::Table(table), &mut flat).map_err(|ConfigError(why)| wrong(why))?;
    let source = Source::File(path.to_owned());
    Ok(flat.into_iter().map(|(key, text)| Setting { key, text, source: source.clone() }).collect())
}

/// Tables become dotted keys, so `[http] listen = …` and `http.listen = …` are the same.
fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) -> Result<(), ConfigError> {
    if let toml::Value::Table(table) = value {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            flatten(&key, value, out)?;
        }
        return Ok(());
    }
    let text = match value {
        toml::Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(scalar).collect();
            items.map(|items| items.join(","))
        }
        other => scalar(other),
    };
    let Some(text) = text else { return refuse(format!("{prefix} = {value}: not a value of this kind")) };
    out.insert(prefix.to_owned(), text);
    Ok(())
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// The variable of a key: `http.listen` is `PONTOON_HTTP_LISTEN`.
fn variable(key: &str) -> String {
    format!("PONTOON_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Variables that are set and configure a broker, for who is none: one that is a slip of the pen is refused there, too.
pub fn broker_variables(environment: impl Iterator<Item = (String, String)>) -> Result<Vec<String>, ConfigError> {
    let set = from_environment(environment)?.into_iter();
    Ok(set
        .filter_map(|setting| if let Source::Environment(name) = setting.source { Some(name) } else { None })
        .collect())
}

fn from_environment(environment: impl Iterator<Item = (String, String)>) -> Result<Vec<Setting>, ConfigError> {
    let by_variable: BTreeMap<String, String> = names().map(|key| (variable(&key), key)).collect();
    let mut found = Vec::new();
    for (name, text) in environment.filter(|(name, _)| name.starts_with("PONTOON_")) {
        if OTHER_VARIABLES.contains(&name.as_str()) || KUBERNETES_VARIABLES.iter().any(|word| name.starts_with(word)) {
            continue;
        }
        let Some(key) = by_variable.get(&name) else {
            let known = by_variable.keys().map(String::as_str).chain(OTHER_VARIABLES.iter().copied());
            return refuse(format!("unknown variable {name} in the environment{}", hint(&name, known)));
        };
        found.push(Setting { key: key.clone(), text, source: Source::Environment(name) });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
    }

    fn read(text: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
        let file = file(text);
        load(Some(file.path()), pairs(variables).into_iter(), &pairs(flags))
            .map(|(config, _)| config)
            .map_err(|error| error.to_string())
    }

    const GOOD: &str = "broker_id = 1\nbootstrap = [\"1@127.0.0.1:7090\", \"2@127.0.0.1:7091\"]\n";

    #[test]
    fn flags_beat_the_environment_which_beats_the_file() {
        let text = format!(
            "{GOOD}data_dir = \"from-file\"\n[http]\nlisten = \"127.0.0.1:1\"\n[limits]\nconnections_max = 5\n"
        );
        let variables =
            [("PONTOON_HTTP_LISTEN", "127.0.0.1:2"), ("PONTOON_LIMITS_CONNECTIONS_MAX", "6"), ("HOME", "/x")];
        let config = read(&text, &variables, &[("http.listen", "127.0.0.1:3")]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("from-file"));
        assert_eq!(config.limits.connections_max, 6);
        assert_eq!(config.http.listen, "127.0.0.1:3");
    }

    #[test]
    fn the_peer_listener_is_where_bootstrap_says_unless_told_otherwise() {
        let config = read("bootstrap = \"1@127.0.0.1:7090,2@127.0.0.1:7091\"", &[], &[("broker_id", "2")]).unwrap();
        assert_eq!(config.peer.listen, "127.0.0.1:7091");
        let config = read(&format!("{GOOD}peer.listen = \"127.0.0.1:9\""), &[], &[]).unwrap();
        assert_eq!(config.peer.listen, "127.0.0.1:9");
    }

    /// Every key, from each of the three places: there is none that only one of them reaches.
    #[test]
    fn every_key_can_come_from_every_place() {
        let untouched = read(GOOD, &[], &[]).unwrap();
        for key in names() {
            let values = [
                "4097000",
                "8600",
                "999999999",
                "127.0.0.9:9",
                "true",
                "elsewhere",
                "every",
                "delete",
                "1@127.0.0.1:9",
                "7",
            ];
            let values = values.into_iter().chain(["producer", "LogAppendTime"]);
            let flag = |value: &str| read(GOOD, &[], &[(&key, value)]).ok().filter(|config| *config != untouched);
            let Some((value, wanted)) = values.into_iter().find_map(|value| Some((value, flag(value)?))) else {
                panic!("no value changes {key}");
            };
            assert_eq!(read(GOOD, &[(&variable(&key), value)], &[]).as_ref(), Ok(&wanted), "{key}");
            let rest: String =
                GOOD.lines().filter(|line| !line.starts_with(&key)).map(|line| format!("{line}\n")).collect();
            assert_eq!(read(&format!("{key} = {value:?}\n{rest}"), &[], &[]).as_ref(), Ok(&wanted), "{key}");
        }
    }

    #[test]
    fn no_two_keys_share_a_variable_and_none_is_taken() {
        let mut seen = std::collections::BTreeSet::new();
        for key in names() {
            let variable = variable(&key);
            assert!(!OTHER_VARIABLES.contains(&variable.as_str()), "{key}");
            assert!(seen.insert(variable), "{key}");
        }
    }

    #[test]
    fn topic_defaults_are_collected() {
        let variables = [("PONTOON_LOG_ACKS_FLOOR", "every")];
        let config = read(&format!("{GOOD}log.retention.ms = 1000"), &variables, &[]).unwrap();
        assert_eq!(config.log, pairs(&[("acks.floor", "every"), ("retention.ms", "1000")]).into_iter().collect());
    }

    type Pairs = &'static [(&'static str, &'static str)];

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_nearest() {
        let cases: [(&str, Pairs, Pairs, [&str; 2]); 5] = [
            ("http.listn = \"a:1\"", &[], &[], ["\"http.listn\"", "\"http.listen\""]),
            ("[raft]\nheartbeat = 5", &[], &[], ["\"raft.heartbeat\"", "\"raft.heartbeat_ms\""]),
            ("log.retention.msx = 5", &[], &[], ["\"log.retention.msx\"", "\"log.retention.ms\""]),
            ("", &[("PONTOON_HTTP_LISEN", "a:1")], &[], ["PONTOON_HTTP_LISEN", "PONTOON_HTTP_LISTEN"]),
            ("", &[], &[("limits.record_bytes", "1")], ["\"limits.record_bytes\"", "\"limits.record_bytes_max\""]),
        ];
        for (text, variables, flags, words) in cases {
            let message = read(&format!("{GOOD}{text}"), variables, flags).unwrap_err();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn a_bad_value_is_named_with_its_key_and_source() {
        let message = read(&format!("{GOOD}limits.connections_max = -3"), &[], &[]).unwrap_err();
        assert!(message.contains("limits.connections_max = \"-3\"") && message.contains("tmp"), "{message}");
        let message = read(GOOD, &[("PONTOON_ALLOW_INSECURE", "maybe")], &[]).unwrap_err();
        assert!(
            message.contains("allow_insecure = \"maybe\" in the environment (PONTOON_ALLOW_INSECURE)"),
            "{message}"
        );
        let message = read(&format!("{GOOD}log.acks.floor = \"most\""), &[], &[]).unwrap_err();
        assert!(message.contains("log.acks.floor = \"most\""), "{message}");
        let message = read(GOOD, &[], &[("raft.reserve_append_bytes", "1GB")]).unwrap_err();
        assert!(message.ends_with(": must be a whole number, 0 or more"), "{message}");
        let message = read("", &[], &[("broker_id", "4294967296")]).unwrap_err();
        assert!(message.ends_with(": must be a whole number from 0 to 4294967295"), "{message}");
        let message = read(GOOD, &[], &[("limits.body_timeout_ms", "86400001")]).unwrap_err();
        assert!(message.contains("whole number of milliseconds from 1 to 86400000"), "{message}");
        let message = read(GOOD, &[], &[("peer.listen", "nowhere")]).unwrap_err();
        assert!(message.contains("peer.listen = \"nowhere\" in the command line"), "{message}");
    }

    #[test]
    fn a_file_that_is_missing_or_no_toml_is_named() {
        let nothing = std::iter::empty();
        let message = load(Some(Path::new("/no/such/file.toml")), nothing, &[]).unwrap_err().to_string();
        assert!(message.starts_with("configuration file /no/such/file.toml: "), "{message}");
        assert!(read("broker_id == 1", &[], &[]).unwrap_err().contains("TOML"));
        assert!(read(&format!("{GOOD}data_dir = 2020-01-01"), &[], &[]).unwrap_err().contains("data_dir"));
    }

    #[test]
    fn the_broker_id_is_not_guessed() {
        assert!(read("bootstrap = [\"1@127.0.0.1:7090\"]", &[], &[]).unwrap_err().contains("broker_id is missing"));
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let variables = [("PONTOON_SERVER", "x"), ("PONTOON_PORT_8090_TCP_ADDR", "y"), ("PONTOON_SERVICE_HOST", "z")];
        read(GOOD, &variables, &[]).unwrap();
    }
}
