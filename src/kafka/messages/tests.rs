//! The tables against those of the `kafka-protocol` crate, which are made from Kafka's own definitions: the same bytes, and the same
//! values in the fields of the same names.

use bytes::BytesMut;
use kafka_protocol::messages::{ApiKey, RequestKind, ResponseKind, fetch_request};
use kafka_protocol::protocol::Decodable;

use super::*;
use crate::kafka::wire::{Field, Sample, Samples};

/// Fields that have a longer name there.
const LONGER: &[(&str, &str)] = &[
    ("batch_index_error_message", "message"),
    ("committed_leader_epoch", "leader_epoch"),
    ("committed_metadata", "metadata"),
    ("committed_offset", "offset"),
    ("config_operation", "operation"),
    ("coordinator_keys", "keys"),
    ("generation_id_or_member_epoch", "generation_id"),
    ("groups_names", "groups"),
    ("partition_index", "partition"),
    ("partition_indexes", "partitions"),
];

/// What stands in a message, as its `Debug` tells it: each number, text and truth, with the name of its field.
fn told(debug: &str) -> Vec<(&str, String)> {
    let (mut told, mut name, mut rest) = (Vec::new(), "", debug);
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            '"' => rest.split_at(rest[1..].find('"').unwrap() + 2),
            first if first.is_alphanumeric() || first == '-' => {
                rest.split_at(rest.find(|c: char| !c.is_alphanumeric() && !"-_".contains(c)).unwrap_or(rest.len()))
            }
            first => rest.split_at(first.len_utf8()),
        };
        rest = after;
        if first == '"' || word.parse::<i128>().is_ok() || ["true", "false"].contains(&word) {
            told.push((name, word.to_owned()));
        } else if let (4, Ok(id)) = (word.matches('-').count(), u128::from_str_radix(&word.replace('-', ""), 16)) {
            told.push((name, id.to_string()));
        } else if rest.starts_with(": ") {
            name = LONGER.iter().find(|(longer, _)| *longer == word).map_or(word, |(_, name)| name);
        }
    }
    told
}

/// What of it was put there; the rest is what fields are that this version has not.
fn put(message: &impl std::fmt::Debug) -> Vec<(String, String)> {
    let is_put = |value: &str| match value.parse::<i128>() {
        Ok(number) => number > 0 && ![i128::from(i32::MAX), i128::from(i64::MAX)].contains(&number),
        Err(_) => value != "false" && value.len() > 2,
    };
    let debug = format!("{message:?}");
    let mut put: Vec<_> = told(&debug).into_iter().filter(|(_, value)| is_put(value)).collect();
    put.sort();
    put.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn bytes_of(api: &Api, version: i16, write: impl FnOnce(&mut Writer)) -> Bytes {
    let mut writer = Writer::new(version, api.is_flexible(version));
    write(&mut writer);
    writer.into_bytes()
}

/// Reads there what was written here, and back; how many values were compared.
macro_rules! compare {
    ($ours:ident, $theirs:ident, $api:expr, $version:expr, $samples:expr) => {{
        let (api, version) = ($api, $version);
        let what = format!("{} {} version {version}", stringify!($ours), api.name);
        let message = $ours::sample(api, &mut $samples);
        let bytes = bytes_of(api, version, |writer| message.write(writer));
        // Without what this version has not.
        let ours = $ours::read(api, version, bytes.clone()).unwrap();
        let (mut left, mut again) = (bytes.clone(), BytesMut::new());
        let theirs = $theirs::decode(ApiKey::try_from(api.key).unwrap(), &mut left, version)
            .unwrap_or_else(|error| panic!("{what}: {error}: {ours:?}"));
        assert!(left.is_empty(), "{what}: {} bytes more than {theirs:?}", left.len());
        assert_eq!(put(&ours), put(&theirs), "{what}");
        theirs.encode(&mut again, version).unwrap();
        assert_eq!(again, bytes, "{what}: {theirs:?}");
        put(&ours).len()
    }};
}

#[test]
fn every_field_of_every_version_is_kafkas() {
    let mut values = 0;
    for api in APIS {
        for version in api.min..=api.max {
            for round in 0..Samples::ROUNDS {
                values += compare!(Request, RequestKind, api, version, Samples::new(round));
                values += compare!(Response, ResponseKind, api, version, Samples::new(round));
            }
            for samples in [Samples::of_nulls, Samples::without_elements] {
                values += compare!(Request, RequestKind, api, version, samples());
                values += compare!(Response, ResponseKind, api, version, samples());
            }
            // What stands before a body.
            let (key, flexible) = (ApiKey::try_from(api.key).unwrap(), api.is_flexible(version));
            let headers = (key.request_header_version(version), key.response_header_version(version));
            let expected = (1 + i16::from(flexible), i16::from(flexible && key != ApiKey::ApiVersions));
            assert_eq!(headers, expected, "{} version {version}", api.name);
        }
    }
    assert!(values > 10_000, "{values}");
}

/// A fetch passes over them where they stand, and never writes them.
#[test]
fn forgotten_topics_are_kafkas() {
    let api = Api::of(1).unwrap();
    for version in 7..=api.max {
        let topic = ForgottenTopic::sample(&mut Samples::new(0));
        let mut bytes = bytes_of(api, version, |writer| topic.write(writer));
        let mut reader = Reader::new(bytes.clone(), version, api.is_flexible(version));
        let ours = ForgottenTopic::read(&mut reader).unwrap();
        let theirs = fetch_request::ForgottenTopic::decode(&mut bytes, version).unwrap();
        assert_eq!((reader.finish(), bytes.len()), (Ok(()), 0), "version {version}");
        assert_eq!((put(&ours), put(&theirs).len()), (put(&theirs), 3), "version {version}");
    }
}

#[test]
fn fields_that_are_taken_for_each_other_are_noticed() {
    let told = |text: &'static str| put(&format_args!("{text}"));
    assert_eq!(
        told("A { one: 5, two: Some(\"x y\"), no: -1, so: true }"),
        told("B(B { so: true, two: \"x y\", one: N(5) })")
    );
    assert_ne!(told("A { one: 5, two: 6 }"), told("A { one: 6, two: 5 }"));
    assert_ne!(told("A { one: true, two: false }"), told("A { one: false, two: true }"));
    assert_eq!(told("A { id: 00000000-0000-0000-0000-00000000000a }"), told("A { id: Uuid(10) }"));
}
