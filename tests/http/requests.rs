//! `/openapi.json` is true of requests, too. From the document alone come values for every parameter and for every field of every body,
//! fitting ones and others: what it allows the running binary takes, what it forbids is refused, and nothing is read that it does not list.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use regex::Regex;
use reqwest::Method;
use serde_json::{Value, json};

use super::openapi::document;
use super::schema::{resolve, schema, validate};
use super::{produce, records_url};
use crate::support::{Cluster, rust_files};

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
const BATCHES: &str = "application/octet-stream";
const EVENTS: &str = "text/event-stream";

/// What an operation may be asked, as the document has it.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    id: &'a str,
    description: &'a str,
    parameters: Vec<&'a Value>,
    /// Schemas by media type.
    bodies: BTreeMap<&'a str, &'a Value>,
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let parameters = [&item["parameters"], &operation["parameters"]].into_iter();
            let parameters = parameters.filter_map(Value::as_array).flatten();
            let content = operation["requestBody"]["content"].as_object().into_iter().flatten();
            all.push(Operation {
                method,
                path,
                id: operation["operationId"].as_str().unwrap(),
                description: operation["description"].as_str().unwrap_or_default(),
                parameters: parameters.map(|parameter| resolve(document, parameter)).collect(),
                bodies: content.map(|(kind, media)| (kind.as_str(), &media["schema"])).collect(),
            });
        }
    }
    all
}

impl<'a> Operation<'a> {
    fn parameters_in(&self, place: &str) -> impl Iterator<Item = &'a Value> {
        self.parameters.iter().copied().filter(move |parameter| parameter["in"] == place)
    }

    fn names_in(&self, place: &str) -> BTreeSet<String> {
        self.parameters_in(place).map(|parameter| name(parameter).to_owned()).collect()
    }

    /// Nobody looks at its parameters: a probe's.
    fn is_careless(&self) -> bool {
        self.description.contains("Parameters are not looked at.")
    }
}

fn name(parameter: &Value) -> &str {
    parameter["name"].as_str().unwrap()
}

/// A request that is taken, to begin with.
#[derive(Clone)]
struct Ask {
    segments: BTreeMap<&'static str, String>,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Ask {
    /// One that changes as little as it can.
    fn of(operation: &Operation<'_>) -> Self {
        let topic = match operation.id {
            "alterTopic" => "altered",
            "deleteTopic" => "none",
            _ => "t",
        };
        let segments = [("topic", topic), ("partition", "0"), ("group", "g")];
        let ask = Self {
            segments: segments.into_iter().map(|(name, text)| (name, text.to_owned())).collect(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Vec::new(),
        };
        match operation.id {
            "createTopic" => ask.json(&json!({"name": "t"})),
            "alterTopic" => ask.json(&json!({})),
            "produce" | "produceByKey" => ask.json(&json!({"records": [{}]})),
            "commitGroupOffsets" => ask.json(&json!({"offsets": []})),
            other => {
                assert!(operation.bodies.is_empty(), "{other} has a body");
                ask
            }
        }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn body(mut self, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        self.headers.retain(|(name, _)| name != "content-type");
        self.body = body.into();
        self.header("content-type", kind)
    }

    fn json(self, body: &Value) -> Self {
        self.body(JSON, body.to_string())
    }

    /// With a parameter where it belongs.
    fn with(mut self, parameter: &Value, text: &str) -> Self {
        let name = name(parameter);
        match parameter["in"].as_str().unwrap() {
            "query" => self.query.push((name.to_owned(), text.to_owned())),
            "header" => self.headers.push((name.to_owned(), text.to_owned())),
            _ => *self.segments.get_mut(name).unwrap() = text.to_owned(),
        }
        self
    }

    async fn send(&self, cluster: &Cluster, operation: &Operation<'_>) -> Answer {
        let mut path = operation.path.to_owned();
        for (name, text) in &self.segments {
            path = path.replace(&format!("{{{name}}}"), &encode(text));
        }
        let query: Vec<_> =
            self.query.iter().map(|(name, text)| format!("{}={}", encode(name), encode(text))).collect();
        let url = format!("{}{path}?{}", cluster.url(1), query.join("&"));
        let method = Method::from_bytes(operation.method.to_uppercase().as_bytes()).unwrap();
        let mut request = cluster.http.request(method, &url).body(self.body.clone());
        for (name, value) in &self.headers {
            request = request.header(name, value.as_bytes());
        }
        let answer = request.send().await.unwrap_or_else(|error| panic!("{url}: {error}"));
        let status = answer.status().as_u16();
        // A success may be a stream without an end.
        let refusal = if status >= 400 { answer.json().await.unwrap() } else { Value::Null };
        let body = String::from_utf8_lossy(&self.body).chars().take(300).collect::<String>();
        Answer { status, refusal, shown: format!("{} {url} {:?} {body}", operation.method, self.headers) }
    }
}

fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

struct Answer {
    status: u16,
    refusal: Value,
    shown: String,
}

impl Answer {
    /// Whatever came of it, it was understood: what there is and what fits together no schema can say.
    fn taken(&self) {
        let by_what_there_is = self.refusal["error"] == "INVALID_REPLICATION_FACTOR";
        let understood = by_what_there_is || !matches!(self.status, 400 | 405 | 406 | 408 | 413 | 415 | 431 | 500);
        assert!(understood, "allowed, but refused: {}: {} {}", self.shown, self.status, self.refusal);
    }

    fn refused(&self, status: u16, naming: &str) {
        assert_eq!(self.status, status, "{naming}: forbidden, but taken: {} {}", self.shown, self.refusal);
        assert_eq!(self.refusal["outcome"], "none", "{}", self.refusal);
        let message = self.refusal["message"].as_str().unwrap().to_lowercase();
        assert!(message.contains(&naming.to_lowercase()), "{naming}: {}: {message}", self.shown);
    }

    fn is(&self, allowed: bool, naming: &str) {
        if allowed { self.taken() } else { self.refused(400, naming) }
    }
}

async fn cluster() -> Cluster {
    let cluster = Cluster::start(1).await;
    for topic in ["t", "altered"] {
        cluster.create_topic(1, topic, 1).await;
    }
    produce(&cluster, 1, "t", "text/plain", "there").await;
    // Before there has been a group, none is looked for.
    let offsets = json!({"offsets": [{"topic": "t", "partition": 0, "offset": 1}]});
    let (status, body) = cluster.ask(1, Method::PUT, "/v1/groups/g/offsets", Some(offsets)).await;
    assert_eq!(status, 204, "{body}");
    cluster
}

/// Numbers at a schema's bounds, and beside them.
fn bounds(schema: &Value, least: &str, most: &str) -> Vec<i128> {
    let of = |key: &str| schema[key].as_i64().map(i128::from).or(schema[key].as_u64().map(i128::from));
    let least = of(least).into_iter().flat_map(|least| [least - 1, least, least + 1]);
    least.chain(of(most).into_iter().flat_map(|most| [most, most + 1])).collect()
}

/// Values that a schema names itself, and strings as long as it allows, and longer: in characters, and in bytes.
fn named(schema: &Value) -> Vec<Value> {
    let mut values: Vec<Value> =
        ["enum", "examples"].iter().filter_map(|key| schema[key].as_array()).flatten().cloned().collect();
    values.extend(schema.get("default").cloned());
    let longest = schema["maxLength"].as_u64().unwrap_or(0) as usize;
    if longest > 0 {
        values.extend(["x".repeat(longest), "x".repeat(longest + 1)].map(Value::from));
        values.extend(["é".repeat(longest / 2), "é".repeat(longest / 2 + 1), "é".repeat(longest)].map(Value::from));
    }
    values
}

/// Whatever somebody may write for a parameter.
const TEXTS: &[&str] = &[
    "x",
    "0",
    "1",
    "7",
    "-1",
    "-0",
    "+5",
    "007",
    "1.5",
    "1e3",
    "0x5",
    "a b",
    "a/b",
    "é",
    "٣",
    "null",
    "true",
    "latest",
    "ALL",
    "timestamp:5",
    "timestamp:",
    "timestamp:x",
    "timestamp:-1",
    "timestamp:+5",
    "timestamp:9223372036854775807",
    "timestamp:9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999",
];

fn texts(schema: &Value) -> Vec<String> {
    let named = named(schema).into_iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let bounds = bounds(schema, "minimum", "maximum").into_iter().map(|bound| bound.to_string());
    let one_of = schema["oneOf"].as_array().into_iter().flatten().flat_map(texts);
    TEXTS.iter().map(|text| (*text).to_owned()).chain(named).chain(bounds).chain(one_of).collect()
}

/// Whether the document allows a parameter this text, as a text or as the number that it is: of digits and nothing else.
fn allows(document: &Value, parameter: &Value, text: &str) -> bool {
    let number = text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let values = [Some(json!(text)), number.map(Value::from)];
    values.iter().flatten().any(|value| validate(document, &parameter["schema"], value).is_ok())
}

/// The operation's request to which a parameter may be added.
fn ask_for(operation: &Operation<'_>, parameter: &Value) -> Ask {
    let ask = Ask::of(operation);
    let description = parameter["description"].as_str().unwrap_or_default();
    if description.starts_with("Of a tail:") {
        return ask.header("accept", EVENTS);
    }
    // They go together.
    let others = ["Producer-Id", "Producer-Epoch", "Producer-Sequence"];
    let others = others.iter().filter(|other| name(parameter).starts_with("Producer-") && **other != name(parameter));
    others.fold(ask, |ask, other| ask.header(other, "0"))
}

#[tokio::test]
async fn every_parameter_takes_what_the_document_allows_and_nothing_else() {
    let cluster = cluster().await;
    let document = document(&cluster).await;
    for operation in &operations(&document) {
        for parameter in &operation.parameters {
            let (mut allowed, mut forbidden) = (0, 0);
            let ask = ask_for(operation, parameter);
            let naming = match (parameter["in"].as_str(), name(parameter)) {
                (Some("path"), "topic" | "group") => "",
                (_, name) => name,
            };
            let also_empty = Some(String::new()).filter(|_| parameter["in"] != "path");
            for text in texts(&parameter["schema"]).into_iter().chain(also_empty) {
                let fits = allows(&document, parameter, &text);
                let answer = ask.clone().with(parameter, &text).send(&cluster, operation).await;
                answer.is(fits, naming);
                *if fits { &mut allowed } else { &mut forbidden } += 1;
                if fits && allowed == 1 && parameter["in"] != "path" {
                    let twice = ask.clone().with(parameter, &text).with(parameter, &text);
                    twice.send(&cluster, operation).await.is(name(parameter) == "Prefer", "twice");
                }
            }
            assert!(allowed > 0, "{}: {parameter}", operation.id);
            assert!(forbidden > 0 || name(parameter) == "Prefer", "{}: {parameter}", operation.id);
        }
        let stranger = json!({"name": "no_such", "in": "query"});
        let answer = Ask::of(operation).with(&stranger, "1").send(&cluster, operation).await;
        answer.is(operation.is_careless(), "no_such");
    }
}

#[tokio::test]
async fn what_the_document_says_does_not_go_together_is_refused() {
    let cluster = cluster().await;
    let document = document(&cluster).await;
    let operations = operations(&document);
    let operation = |id: &str| operations.iter().find(|operation| operation.id == id).unwrap();
    let fetch = operation("fetch");
    for (accept, not_for) in [(EVENTS, "ot for tails"), (BATCHES, "for whole batches"), (LINES, "?"), (JSON, "?")] {
        for parameter in fetch.parameters_in("query") {
            let fits = texts(&parameter["schema"]).into_iter().find(|text| allows(&document, parameter, text)).unwrap();
            let answer = Ask::of(fetch).header("accept", accept).with(parameter, &fits).send(&cluster, fetch).await;
            answer.is(!parameter["description"].as_str().unwrap().contains(not_for), name(parameter));
        }
    }
    let batch = cluster.http.get(records_url(&cluster, 1, "t")).header("accept", BATCHES).send().await.unwrap();
    let batch = batch.bytes().await.unwrap();
    let stamps: Vec<_> =
        operation("produce").parameters.iter().filter(|one| name(one).starts_with("Producer-")).collect();
    assert_eq!(stamps.len(), 3);
    for missing in &stamps {
        let two = stamps.iter().filter(|stamp| name(stamp) != name(missing));
        let ask = two.fold(Ask::of(operation("produce")), |ask, stamp| ask.with(stamp, "0"));
        ask.send(&cluster, operation("produce")).await.refused(400, "Producer-");
    }
    let ask = Ask::of(operation("produce")).body(BATCHES, batch);
    ask.send(&cluster, operation("produce")).await.taken();
    let ask = stamps.iter().fold(ask, |ask, stamp| ask.with(stamp, "0"));
    ask.send(&cluster, operation("produce")).await.refused(400, "RecordBatch");
    let by_key = operation("produceByKey");
    for parameter in operation("produce").parameters_in("header").filter(|header| name(header) != "Prefer") {
        assert!(by_key.description.contains(name(parameter)), "{}", by_key.description);
        Ask::of(by_key).with(parameter, "0").send(&cluster, by_key).await.refused(400, name(parameter));
    }
}

/// Whatever somebody may write for a field.
fn pool() -> Vec<Value> {
    let lists = json!([[], [1], ["a", "b"], [["a", "b"]], [["a"]], [["a", "b", "c"]], [[1, "b"]], [["a", 1]]]);
    let objects = json!([{}, {"a": 1}, {"base64": "YQ=="}, {"base64": 5}]);
    let others = json!([null, true, 0, 1, -1, 1.5, "", "x", "a b", "5", "+5", "-1", "1.5", "YQ==", "YR==", ".", ".."]);
    [others, lists, objects].into_iter().flat_map(|values| values.as_array().unwrap().clone()).collect()
}

fn json_number(number: i128) -> Value {
    u64::try_from(number).map(Value::from).or(i64::try_from(number).map(Value::from)).unwrap()
}

/// What may stand in one place of a body: of its schema's own choice, and anything else.
fn candidates(document: &Value, schema: &Value, here: &Value) -> Vec<Value> {
    let schema = resolve(document, schema);
    let mut values = pool();
    values.extend(named(schema));
    values.extend(bounds(schema, "minimum", "maximum").into_iter().map(json_number));
    values.extend(bounds(schema, "x-minimum", "x-maximum").into_iter().map(|bound| json!(bound.to_string())));
    if let Some(item) = here.as_array().and_then(|items| items.first()) {
        let counts = bounds(schema, "minItems", "maxItems").into_iter().filter(|count| *count >= 0);
        values.extend(counts.map(|count| json!(vec![item; count as usize])));
    }
    for one in schema["oneOf"].as_array().into_iter().flatten() {
        values.extend(candidates(document, one, here));
    }
    values
}

/// A body with one thing changed, everywhere and in every way. `seen`: the places, as the document names them.
struct Changes<'a> {
    document: &'a Value,
    whole: &'a Value,
    changed: Vec<Value>,
    seen: BTreeSet<String>,
}

impl<'a> Changes<'a> {
    fn of(document: &'a Value, schema: &Value, whole: &'a Value) -> Self {
        assert_eq!(validate(document, schema, whole), Ok(()), "{whole}");
        let mut changes = Self { document, whole, changed: Vec::new(), seen: BTreeSet::new() };
        changes.at(schema, "", "");
        changes
    }

    fn change(&mut self, pointer: &str, change: impl FnOnce(&mut Value)) {
        let mut whole = self.whole.clone();
        change(whole.pointer_mut(pointer).unwrap());
        self.changed.push(whole);
    }

    fn at(&mut self, schema: &Value, pointer: &str, place: &str) {
        self.seen.insert(place.to_owned());
        let (whole, document) = (self.whole, self.document);
        let (schema, here) = (resolve(document, schema), whole.pointer(pointer).unwrap());
        for value in candidates(document, schema, here) {
            self.change(pointer, |here| *here = value);
        }
        for one in schema["oneOf"].as_array().into_iter().flatten().filter(|one| validate(document, one, here).is_ok())
        {
            self.inside(resolve(document, one), here, pointer, place);
        }
        self.inside(schema, here, pointer, place);
    }

    fn inside(&mut self, schema: &Value, here: &Value, pointer: &str, place: &str) {
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            if here.get(name).is_some() {
                self.change(pointer, |here| drop(here.as_object_mut().unwrap().remove(name)));
                self.at(of, &format!("{pointer}/{name}"), &format!("{place}/{name}"));
            } else {
                let fits = candidates(self.document, of, &Value::Null).into_iter();
                let value = fits.rev().find(|value| validate(self.document, of, value).is_ok()).unwrap();
                self.change(pointer, |here| here[name] = value);
            }
        }
        if here.is_object() {
            self.change(pointer, |here| here["no_such"] = json!(1));
        }
        for (at, _) in here.as_array().into_iter().flatten().enumerate() {
            let of = schema["prefixItems"].get(at).unwrap_or(&schema["items"]);
            self.at(
                of,
                &format!("{pointer}/{at}"),
                &format!("{place}/{}", if schema["items"].is_null() { at } else { 0 }),
            );
        }
    }
}

/// The places of a schema that have a name.
fn places(document: &Value, schema: &Value, place: &str, found: &mut BTreeSet<String>) {
    let schema = resolve(document, schema);
    found.insert(place.to_owned());
    for (name, of) in schema["properties"].as_object().into_iter().flatten() {
        places(document, of, &format!("{place}/{name}"), found);
    }
    if !schema["items"].is_null() {
        places(document, &schema["items"], &format!("{place}/0"), found);
    }
    for (at, of) in schema["prefixItems"].as_array().into_iter().flatten().enumerate() {
        places(document, of, &format!("{place}/{at}"), found);
    }
    for one in schema["oneOf"].as_array().into_iter().flatten() {
        places(document, one, place, found);
    }
}

/// Bodies that together have everything that a body may have.
fn examples(id: &str) -> Vec<Value> {
    let config = json!({
        "acks.floor": "none", "cleanup.policy": "delete", "compression.type": "producer",
        "delete.retention.ms": "0", "max.message.bytes": "1000000",
        "message.timestamp.type": "CreateTime", "retention.bytes": "-1", "retention.ms": "-1", "segment.bytes": "1048576",
        "segment.ms": "60000",
    });
    let headers = json!([["a", "b"], ["c", null], ["d", {"base64": "YQ=="}]]);
    match id {
        "createTopic" => vec![json!({"name": "made", "partitions": 1, "replicas": 1, "config": config})],
        // It can only grow: what comes after one that does names no number.
        "alterTopic" => vec![json!({"partitions": null, "config": config})],
        "commitGroupOffsets" => {
            vec![json!({"offsets": [{"topic": "t", "partition": 0, "offset": 1, "metadata": "m"}]})]
        }
        "produce" | "produceByKey" => vec![
            json!({"records": [{"key": "k", "value": {"a": 1}, "headers": headers, "timestamp": 5}]}),
            json!({"records": [{"key_base64": "YQ==", "value_base64": "YQ=="}]}),
        ],
        other => panic!("{other} has a body, and no example here"),
    }
}

/// A body of a topic's creation that can be tried: under a name that is free, and if it fits, without ten thousand partitions, which
/// are refused for want of brokers once their number was taken.
fn to_be_created(mut body: Value, at: usize, fits: bool) -> Value {
    if body["name"] == "made" {
        body["name"] = json!(format!("made-{at}"));
    }
    if fits && body["partitions"].as_u64().is_some_and(|partitions| partitions > 100) {
        body["replicas"] = json!(15);
    }
    body
}

#[tokio::test]
async fn every_body_may_be_what_the_document_allows_and_nothing_else() {
    let cluster = cluster().await;
    let document = document(&cluster).await;
    for operation in operations(&document).iter().filter(|operation| !operation.bodies.is_empty()) {
        let of_json = operation.bodies[JSON];
        let (mut allowed, mut forbidden, mut seen) = (0, 0, BTreeSet::new());
        for example in examples(operation.id) {
            let changes = Changes::of(&document, of_json, &example);
            seen.extend(changes.seen);
            for (at, body) in std::iter::once(example.clone()).chain(changes.changed).enumerate() {
                let fits = validate(&document, of_json, &body).is_ok();
                *if fits { &mut allowed } else { &mut forbidden } += 1;
                let body = match operation.id {
                    "createTopic" => to_be_created(body, at, fits),
                    // To be made in earnest.
                    "alterTopic" if body["partitions"] == 10_000 => continue,
                    _ => body,
                };
                Ask::of(operation).json(&body).send(&cluster, operation).await.is(fits, "");
            }
        }
        let mut all = BTreeSet::new();
        places(&document, of_json, "", &mut all);
        assert_eq!(seen, all, "{}: every field is in an example", operation.id);
        assert!(allowed > 5 && forbidden > 20, "{}: {allowed} {forbidden}", operation.id);
    }
}

#[tokio::test]
async fn every_line_may_be_a_record_and_every_kind_of_body_is_one_that_the_document_lists() {
    let cluster = cluster().await;
    let document = document(&cluster).await;
    let operations = operations(&document);
    let kinds: BTreeSet<&str> = operations.iter().flat_map(|operation| operation.bodies.keys().copied()).collect();
    assert_eq!(kinds, BTreeSet::from([JSON, LINES, BATCHES, "text/plain"]));
    let batch = cluster.http.get(records_url(&cluster, 1, "t")).header("accept", BATCHES).send().await.unwrap();
    let batch = batch.bytes().await.unwrap().to_vec();
    for operation in operations.iter().filter(|operation| !operation.bodies.is_empty()) {
        let ask = |kind: &str, body: &[u8]| Ask::of(operation).body(kind, body);
        let usual = Ask::of(operation).body;
        for kind in kinds.iter().chain(&["image/png", ""]) {
            let body: &[u8] = match *kind {
                LINES => b"{}\n",
                BATCHES => &batch,
                _ => &usual,
            };
            let answer = ask(kind, body).send(&cluster, operation).await;
            match operation.bodies.contains_key(kind) {
                true => answer.taken(),
                false => answer.refused(415, "send"),
            }
        }
        let mut bare = Ask::of(operation);
        bare.headers.clear();
        bare.send(&cluster, operation).await.refused(415, "Content-Type is missing");
        let packed = Ask::of(operation).header("content-encoding", "gzip");
        packed.send(&cluster, operation).await.refused(415, "Content-Encoding");
        for kind in operation.bodies.keys().filter(|kind| **kind != "text/plain") {
            ask(kind, b"").send(&cluster, operation).await.refused(400, "");
        }
        if operation.bodies.contains_key("text/plain") {
            for text in [&b""[..], b"x", "é\n".as_bytes(), b"\xff"] {
                ask("text/plain", text).send(&cluster, operation).await.taken();
            }
        }
        if operation.bodies.contains_key(BATCHES) {
            for wrong in [&batch[..batch.len() - 1], b"x"] {
                ask(BATCHES, wrong).send(&cluster, operation).await.refused(400, "");
            }
        }
        if operation.bodies.contains_key(LINES) {
            let record = schema("Record");
            for example in examples(operation.id) {
                let changes = Changes::of(&document, &record, &example["records"][0]);
                for line in changes.changed {
                    let fits = validate(&document, &record, &line).is_ok();
                    let answer = ask(LINES, format!("{{}}\n{line}\n").as_bytes()).send(&cluster, operation).await;
                    answer.is(fits, "line 2");
                }
            }
        }
    }
}

/// The names that a refusal says there are.
fn names_after<'a>(message: &'a str, word: &str, name: &str) -> BTreeSet<&'a str> {
    let rest = message.split_once(word).map_or("", |(_, rest)| rest);
    let name = Regex::new(name).unwrap();
    name.find_iter(rest).map(|found| found.as_str().trim_matches('`')).collect()
}

/// Where a body has fields of its own: an example with a strange one there, and what the document lists.
fn strange_fields<'a>(
    document: &'a Value,
    of: &'a Value,
    example: &Value,
    pointer: &str,
) -> Vec<(Value, BTreeSet<&'a str>)> {
    let schema = resolve(document, of);
    let here = example.pointer(pointer).unwrap();
    let mut found = Vec::new();
    if let (Some(properties), true) = (schema["properties"].as_object(), here.is_object()) {
        let mut strange = example.clone();
        strange.pointer_mut(pointer).unwrap()["no_such"] = json!(1);
        found.push((strange, properties.keys().map(String::as_str).collect()));
        for (name, of) in properties.iter().filter(|(name, _)| here.get(name).is_some()) {
            found.extend(strange_fields(document, of, example, &format!("{pointer}/{name}")));
        }
    }
    for (at, _) in here.as_array().into_iter().flatten().enumerate() {
        let of = schema["prefixItems"].get(at).unwrap_or(&schema["items"]);
        found.extend(strange_fields(document, of, example, &format!("{pointer}/{at}")));
    }
    for one in schema["oneOf"].as_array().into_iter().flatten() {
        found.extend(strange_fields(document, one, example, pointer));
    }
    found
}

/// The reader's own list of what it knows is in its refusal of what it does not know; it is the document's.
#[tokio::test]
async fn every_parameter_and_every_field_that_is_read_is_in_the_document() {
    let cluster = cluster().await;
    let document = document(&cluster).await;
    let mut lists = 0;
    for operation in operations(&document).iter().filter(|operation| !operation.is_careless()) {
        let stranger = json!({"name": "no_such", "in": "query"});
        let answer = Ask::of(operation).with(&stranger, "1").send(&cluster, operation).await;
        let message = answer.refusal["message"].as_str().unwrap().to_owned();
        let known: BTreeSet<String> =
            names_after(&message, "There are ", "[a-z_]+").into_iter().map(str::to_owned).collect();
        assert_eq!(known, operation.names_in("query"), "{}: {message}", operation.id);
        assert_eq!(known.is_empty(), message.contains("there are none here"), "{message}");
        let Some(of_json) = operation.bodies.get(JSON) else { continue };
        for example in examples(operation.id) {
            for (body, listed) in strange_fields(&document, of_json, &example, "") {
                let answer = Ask::of(operation).json(&body).send(&cluster, operation).await;
                let message = answer.refusal["message"].as_str().unwrap().to_owned();
                if listed.contains("retention.ms") {
                    let keys = pontoon::config::keys::TOPIC_DOCS.iter().map(|(key, _)| *key);
                    assert_eq!(listed, keys.collect());
                    assert!(message.contains("\"no_such\""), "{message}");
                    continue;
                }
                assert_eq!(names_after(&message, "expected", "`[a-z_0-9]+`"), listed, "{}: {message}", operation.id);
                lists += 1;
            }
        }
    }
    assert!(lists > 8, "{lists}");
}

/// Words in quotes in the code that reads requests: each may be the name of a header that it reads.
fn words() -> BTreeSet<String> {
    let word = Regex::new("\"([a-z][a-z-]+)\"").unwrap();
    let mut words = BTreeSet::new();
    for (_, text) in rust_files(&["src/http", "src/api"]) {
        let code = text.split("#[cfg(test)]").next().unwrap();
        words.extend(word.captures_iter(code).map(|found| found[1].to_owned()));
    }
    words
}

/// What HTTP itself gives a meaning: OpenAPI has other places for some, and none for the rest.
const OF_HTTP: &[&str] = &[
    "accept",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "origin",
    "transfer-encoding",
];

/// A header with nonsense in it makes a difference only where it is read.
#[tokio::test]
async fn every_header_that_is_read_is_in_the_document() {
    let cluster = cluster().await;
    let document = document(&cluster).await;
    let words = words();
    assert!(words.len() > 50 && words.contains("if-match-offset") && words.contains("last-event-id"), "{words:?}");
    let mut read = BTreeMap::new();
    for operation in &operations(&document) {
        let accepts = if operation.id == "fetch" { &[JSON, BATCHES, EVENTS][..] } else { &[JSON] };
        for accept in accepts {
            let ask = Ask::of(operation).header("accept", accept);
            let usual = ask.send(&cluster, operation).await.status;
            let tried = words.iter().filter(|word| !OF_HTTP.contains(&word.as_str()) && !word.starts_with("pontoon-"));
            let tries = tried.map(|word| {
                let (ask, cluster) = (ask.clone().header(word, "?!"), &cluster);
                async move { (word, ask.send(cluster, operation).await.status) }
            });
            let differ = stream::iter(tries).buffer_unordered(8).filter(|(_, status)| {
                let differs = *status != usual;
                async move { differs }
            });
            let differ: Vec<&String> = differ.map(|(word, _)| word).collect().await;
            read.entry(operation.id).or_insert_with(BTreeSet::new).extend(differ.into_iter().cloned());
        }
    }
    for operation in &operations(&document) {
        let listed: BTreeSet<String> =
            operation.names_in("header").into_iter().map(|name| name.to_lowercase()).collect();
        let refused =
            |word: &String| operation.id == "produceByKey" && operation.description.to_lowercase().contains(word);
        let read: BTreeSet<_> = read[operation.id].iter().filter(|word| !refused(word)).cloned().collect();
        // Of what Prefer asks for, what is not known is passed over.
        let strict = listed.into_iter().filter(|word| word != "prefer");
        assert_eq!(read, strict.collect(), "{}", operation.id);
    }
}
