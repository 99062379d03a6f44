//! `/openapi.json` is true: whatever is asked of the running binary, it answers with a status, a content type and a body
//! that the document lists for that path and method; and it serves no path or method that the document does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use futures_util::{StreamExt, stream};
use reqwest::{Method, Response};
use serde_json::Value;

use super::schema::{resolve, schema, validate};
use crate::support::Cluster;

const METHODS: [&str; 6] = ["get", "post", "put", "patch", "delete", "options"];

pub(super) async fn document(cluster: &Cluster) -> Value {
    let (status, document) = cluster.get(1, "/openapi.json").await;
    assert_eq!(status, 200);
    document
}

/// One question: method, path (as the document has it), and the request.
struct Probe {
    method: &'static str,
    template: &'static str,
    shown: String,
    request: reqwest::RequestBuilder,
}

/// Everything that may be put together to a request of an operation.
struct Pieces {
    method: &'static str,
    template: &'static str,
    paths: &'static [&'static str],
    queries: &'static [&'static str],
    headers: &'static [&'static [(&'static str, &'static str)]],
    bodies: &'static [&'static str],
}

const TOPICS: &[&str] = &["/v1/topics/t", "/v1/topics/none", "/v1/topics/a%2Fb", "/v1/topics/%ff"];
const NOTHING: &[&str] = &[""];
const PLAIN: &[&[(&str, &str)]] = &[&[], &[("origin", "http://evil.example")], &[("host", "evil.example")]];
const JSON: &[&[(&str, &str)]] =
    &[&[("content-type", "application/json")], &[("content-type", "image/png")], &[("origin", "http://evil.example")]];
const RECORDS: &[&str] = &[
    "/v1/topics/t/partitions/0/records",
    "/v1/topics/t/partitions/7/records",
    "/v1/topics/t/partitions/x/records",
    "/v1/topics/none/partitions/0/records",
];
const OFFSETS: &[&str] = &[
    "/v1/topics/t/partitions/0/offsets",
    "/v1/topics/t/partitions/7/offsets",
    "/v1/topics/t/partitions/-1/offsets",
    "/v1/topics/none/partitions/0/offsets",
];
const FORMATS: &[&[(&str, &str)]] = &[
    &[("content-type", "application/json")],
    &[("content-type", "text/plain")],
    &[("content-type", "application/x-ndjson")],
    &[("content-type", "application/octet-stream")],
    &[("content-type", "image/png")],
    &[("content-type", "text/plain"), ("origin", "http://evil.example")],
    &[("content-type", "text/plain"), ("content-encoding", "gzip")],
    &[("content-type", "text/plain"), ("if-match-offset", "99999")],
    &[("content-type", "text/plain"), ("producer-id", "1")],
    &[("content-type", "text/plain"), ("producer-id", "99"), ("producer-epoch", "0"), ("producer-sequence", "5")],
];
const RECORD_BODIES: &[&str] =
    &["{\"records\":[{\"key\":\"k\",\"value\":{\"a\":[1]}},{}]}", "{\"value\":1}\n", "", "{}"];
const ACCEPTS: &[&[(&str, &str)]] = &[
    &[],
    &[("accept", "application/x-ndjson")],
    &[("accept", "application/octet-stream")],
    &[("accept", "text/event-stream")],
    &[("accept", "text/event-stream"), ("last-event-id", "0")],
    &[("accept", "text/event-stream"), ("last-event-id", "x")],
    &[("accept", "image/png")],
    &[("origin", "http://evil.example")],
];

const PIECES: &[Pieces] = &[
    Pieces {
        method: "get",
        template: "/v1/topics",
        paths: &["/v1/topics"],
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "post",
        template: "/v1/topics",
        paths: &["/v1/topics"],
        queries: &["", "?x=1", "?timeout_ms=0"],
        headers: JSON,
        bodies: &[
            "{\"name\":\"made\",\"partitions\":2,\"config\":{\"retention.ms\":\"60000\"}}",
            "{\"name\":\"t\"}",
            "{\"name\":\"a b\"}",
            "{\"name\":\"x\",\"replicas\":9}",
            "{\"name\":\"x\",\"config\":{\"no.such\":\"1\"}}",
            "[]",
            "",
        ],
    },
    Pieces {
        method: "get",
        template: "/v1/topics/{topic}",
        paths: TOPICS,
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "patch",
        template: "/v1/topics/{topic}",
        paths: TOPICS,
        queries: &["", "?x=1"],
        headers: JSON,
        bodies: &["{\"config\":{\"retention.ms\":\"70000\"}}", "{\"partitions\":0}", "{\"name\":\"y\"}", "x"],
    },
    Pieces {
        method: "post",
        template: "/v1/topics/{topic}/records",
        paths: &["/v1/topics/t/records", "/v1/topics/none/records"],
        queries: &["", "?acks=none", "?acks=x"],
        headers: FORMATS,
        bodies: RECORD_BODIES,
    },
    Pieces {
        method: "post",
        template: "/v1/topics/{topic}/partitions/{partition}/records",
        paths: RECORDS,
        queries: &["", "?acks=none", "?acks=x"],
        headers: FORMATS,
        bodies: RECORD_BODIES,
    },
    Pieces {
        method: "get",
        template: "/v1/topics/{topic}/partitions/{partition}/records",
        paths: RECORDS,
        queries: &[
            "",
            "?offset=99999",
            "?offset=latest&max_wait_ms=5",
            "?value_format=json",
            "?max_records=1",
            "?offset=x",
        ],
        headers: ACCEPTS,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/v1/topics/{topic}/partitions/{partition}/offsets",
        paths: OFFSETS,
        queries: &["", "?timestamp=5", "?timestamp=x", "?consistency=linearizable"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "post",
        template: "/v1/producers",
        paths: &["/v1/producers"],
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "put",
        template: "/v1/groups/{group}/offsets",
        paths: &["/v1/groups/g/offsets"],
        queries: &["", "?x=1"],
        headers: JSON,
        bodies: &[
            r#"{"offsets":[{"topic":"t","partition":0,"offset":1,"metadata":"m"}]}"#,
            r#"{"offsets":[{"topic":"missing","partition":0,"offset":1}]}"#,
            r#"{"offsets":[{"topic":"t","partition":9,"offset":1}]}"#,
            r#"{"offset":1}"#,
        ],
    },
    Pieces {
        method: "get",
        template: "/v1/groups/{group}/offsets",
        paths: &["/v1/groups/g/offsets", "/v1/groups/nobody/offsets"],
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/v1/groups/{group}",
        paths: &["/v1/groups/g", "/v1/groups/nobody"],
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/v1/groups",
        paths: &["/v1/groups"],
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/v1/cluster",
        paths: &["/v1/cluster"],
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/v1/brokers",
        paths: &["/v1/brokers"],
        queries: &["", "?x=1"],
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/healthz",
        paths: &["/healthz"],
        queries: NOTHING,
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/readyz",
        paths: &["/readyz"],
        queries: NOTHING,
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/metrics",
        paths: &["/metrics"],
        queries: NOTHING,
        headers: PLAIN,
        bodies: NOTHING,
    },
    Pieces {
        method: "get",
        template: "/openapi.json",
        paths: &["/openapi.json"],
        queries: NOTHING,
        headers: PLAIN,
        bodies: NOTHING,
    },
    // Last: it takes the others' topic away.
    Pieces {
        method: "delete",
        template: "/v1/topics/{topic}",
        paths: TOPICS,
        queries: &["?x=1", ""],
        headers: PLAIN,
        bodies: NOTHING,
    },
];

impl Pieces {
    fn probes(&self, cluster: &Cluster, id: u32) -> Vec<Probe> {
        let mut probes = Vec::new();
        for path in self.paths {
            for query in self.queries {
                for headers in self.headers {
                    for body in self.bodies {
                        let method = Method::from_bytes(self.method.to_uppercase().as_bytes()).unwrap();
                        let url = format!("{}{path}{query}", cluster.url(id));
                        let request = cluster.http.request(method, url).body((*body).to_owned());
                        let request =
                            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
                        let shown = format!("{} {path}{query} {headers:?} {body:?} at {id}", self.method);
                        probes.push(Probe { method: self.method, template: self.template, shown, request });
                    }
                }
            }
        }
        probes
    }
}

#[tokio::test]
async fn every_answer_is_one_that_the_document_lists() {
    let cluster = Cluster::start(1).await;
    let document = document(&cluster).await;
    cluster.create_topic(1, "t", 2).await;
    cluster.produce_text(1, "t", 0, "there").await;
    let mut seen: BTreeMap<(&str, &str), BTreeSet<u16>> = BTreeMap::new();
    for pieces in PIECES {
        for probe in pieces.probes(&cluster, 1) {
            let status = check(&document, probe).await;
            seen.entry((pieces.template, pieces.method)).or_default().insert(status);
        }
    }
    // The probes were worth something: each operation has succeeded and has refused.
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let statuses =
                seen.get(&(path.as_str(), method.as_str())).unwrap_or_else(|| panic!("{method} {path} was not asked"));
            assert!(statuses.iter().any(|status| *status < 300), "{method} {path}: {statuses:?}");
            assert!(statuses.contains(&403), "{method} {path}: {statuses:?}");
        }
    }
    let fetch = &seen[&("/v1/topics/{topic}/partitions/{partition}/records", "get")];
    assert_eq!(fetch, &BTreeSet::from([200, 400, 403, 404, 406, 416]));
    let produce = &seen[&("/v1/topics/{topic}/partitions/{partition}/records", "post")];
    assert_eq!(produce, &BTreeSet::from([200, 202, 400, 403, 404, 409, 412, 415]));
}

#[tokio::test]
async fn what_passes_through_another_broker_is_listed_too() {
    let mut cluster = Cluster::start(3).await;
    let document = document(&cluster).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "there").await;
    let leader = cluster.leader(1, "t", 0).await;
    let follower = leader % 3 + 1;
    let template = "/v1/topics/{topic}/partitions/{partition}/records";
    let probe = |method: &'static str, path: &str, headers: &[(&str, &str)]| {
        let verb = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = cluster.http.request(verb, format!("{}{path}", cluster.url(follower))).body("x");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Probe { method, template, shown: format!("{method} {path} {headers:?}"), request }
    };
    let path = "/v1/topics/t/partitions/0/records";
    for accept in ["application/json", "application/x-ndjson", "application/octet-stream", "text/event-stream"] {
        let get = probe("get", &format!("{path}?offset=earliest"), &[("accept", accept)]);
        assert_eq!(check(&document, get).await, 200);
        let get = probe("get", &format!("{path}?offset=earliest"), &[("accept", accept), ("prefer", "redirect")]);
        assert_eq!(check(&document, get).await, 307);
    }
    let text = ("content-type", "text/plain");
    assert_eq!(check(&document, probe("post", path, &[text])).await, 200);
    assert_eq!(check(&document, probe("post", path, &[text, ("if-match-offset", "77")])).await, 412);
    assert_eq!(check(&document, probe("post", path, &[text, ("prefer", "redirect")])).await, 307);
    for id in (1..=3).filter(|id| *id != follower) {
        cluster.kill(id);
    }
    let url = format!("{}{path}?timeout_ms=300", cluster.url(follower));
    let request = cluster.http.post(&url).header("content-type", "text/plain").body("x");
    let late = Probe { method: "post", template, shown: "without a majority".into(), request };
    assert_eq!(check(&document, late).await, 503);
    let url = format!("{}/v1/topics/t/records?timeout_ms=300", cluster.url(follower));
    let request = cluster.http.post(&url).header("content-type", "text/plain").body("x");
    let template = "/v1/topics/{topic}/records";
    let late = Probe { method: "post", template, shown: "by key, without a majority".into(), request };
    assert_eq!(check(&document, late).await, 503);
}

/// Whoever asks another broker than the leader, and would rather be told where that is, is told so: by each operation that
/// lists a 307, with the query kept, and by no other.
#[tokio::test]
async fn a_redirect_is_answered_where_the_document_lists_one_and_nowhere_else() {
    let cluster = Cluster::start(3).await;
    let document = document(&cluster).await;
    cluster.create_topic(1, "t", 1).await;
    cluster.produce_text(1, "t", 0, "there").await;
    let mut redirecting = 0;
    for pieces in PIECES {
        let operation = &document["paths"][pieces.template][pieces.method];
        let listed = operation["responses"].get("307").is_some();
        let timed = operation["parameters"].as_array().into_iter().flatten();
        let timed = timed.map(|it| resolve(&document, it)).any(|it| it["name"] == "timeout_ms");
        let path = format!("{}{}", pieces.paths[0], if timed { "?timeout_ms=9000" } else { "" });
        let mut answers = Vec::new();
        for id in 1..=3 {
            let verb = Method::from_bytes(pieces.method.to_uppercase().as_bytes()).unwrap();
            let request = cluster.http.request(verb, format!("{}{path}", cluster.url(id))).body(pieces.bodies[0]);
            let request =
                pieces.headers[0].iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let answer = request.header("prefer", "redirect").send().await.unwrap();
            let to = answer.headers().get("location").map(|to| to.to_str().unwrap().to_owned());
            answers.push((id, answer.status().as_u16(), to));
        }
        let (redirects, others): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, status, _)| *status == 307);
        let shown = format!("{} {path}: {redirects:?}, {others:?}", pieces.method);
        assert_eq!(redirects.len(), if listed { 2 } else { 0 }, "{shown}");
        redirecting += usize::from(listed);
        for (_, _, to) in redirects {
            assert_eq!(to, Some(format!("{}{path}", cluster.url(others[0].0))), "{shown}");
            assert!(others[0].1 < 300, "{shown}");
        }
    }
    assert_eq!(redirecting, 6);
}

#[tokio::test]
async fn nothing_is_served_that_is_not_in_the_document() {
    let cluster = Cluster::start(1).await;
    let document = document(&cluster).await;
    let paths = document["paths"].as_object().unwrap();
    for (path, operations) in paths {
        let url = format!(
            "{}{}",
            cluster.url(1),
            path.replace("{topic}", "t").replace("{partition}", "0").replace("{group}", "g")
        );
        let listed: BTreeSet<String> = operations
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "parameters")
            .map(|key| key.to_uppercase())
            .collect();
        for method in METHODS.iter().map(|method| method.to_uppercase()).filter(|method| !listed.contains(method)) {
            let verb = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = cluster.http.request(verb, &url).send().await.unwrap();
            assert_eq!(answer.status(), 405, "{method} {path}");
            let allow = answer.headers()["allow"].to_str().unwrap();
            let allowed = allow.split(',').map(|method| method.trim().to_owned()).filter(|method| method != "HEAD");
            assert_eq!(allowed.collect::<BTreeSet<_>>(), listed, "{path}");
            let body: Value = answer.json().await.unwrap();
            assert_eq!(validate(&document, &schema("Error"), &body), Ok(()));
        }
    }
    for path in ["/", "/v1", "/v1/topic", "/v1/topics/", "/v1/topics/t/partitions", "/v1/group", "/openapi", "/admin"] {
        assert!(!paths.contains_key(path));
        let (status, body) = cluster.get(1, path).await;
        assert_eq!((status.as_u16(), validate(&document, &schema("Error"), &body)), (404, Ok(())), "{path}");
    }
}

/// Holds a refusal that any test was given to the document: it is listed for its path, with this body.
pub fn check_refusal(path: &str, status: u16, body: &Value) {
    static DOCUMENT: LazyLock<Value> =
        LazyLock::new(|| serde_json::from_str(include_str!("../../src/http/openapi.json")).unwrap());
    let like = |template: &str| {
        let (parts, asked): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        parts.len() == asked.len()
            && parts.iter().zip(asked).all(|(part, asked)| part.starts_with('{') || *part == asked)
    };
    // That there is no such path, or method, is told of all there are not.
    let operations = DOCUMENT["paths"].as_object().unwrap().iter().find(|(template, _)| like(template));
    let Some((template, operations)) = operations.filter(|_| status >= 400 && status != 405) else { return };
    let operations = operations.as_object().unwrap().iter().filter(|(method, _)| METHODS.contains(&method.as_str()));
    let listed: Vec<_> = operations
        .filter_map(|(_, operation)| operation["responses"].get(status.to_string()))
        .map(|listed| &resolve(&DOCUMENT, listed)["content"]["application/json"]["schema"])
        .collect();
    assert!(!listed.is_empty(), "{template}: {status} is not listed: {body}");
    let sound = listed.iter().any(|schema| validate(&DOCUMENT, schema, body).is_ok());
    assert!(sound, "{template}: {status} has another body: {body}");
}

/// Asks, and holds the answer to the document. Returns its status.
async fn check(document: &Value, probe: Probe) -> u16 {
    let Probe { method, template, shown, request } = probe;
    let answer = request.send().await.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let status = answer.status().as_u16();
    let listed = resolve(document, &document["paths"][template][method]["responses"][status.to_string()]);
    assert!(listed.is_object(), "{shown}: {status} is not listed");
    let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let kind = kind.as_deref().map(|kind| kind.split(';').next().unwrap_or_default().trim());
    for (name, header) in listed["headers"].as_object().into_iter().flatten() {
        let optional =
            header["description"].as_str().is_some_and(|text| text.contains("With x-ndjson and octet-stream"))
                && !matches!(kind, Some("application/x-ndjson" | "application/octet-stream"));
        assert!(optional || answer.headers().contains_key(name.as_str()), "{shown}: {status} without {name}");
    }
    let Some(content) = listed.get("content") else {
        assert_eq!((kind, answer.bytes().await.unwrap().len()), (None, 0), "{shown}: {status} has no body");
        return status;
    };
    let kind = kind.unwrap_or_else(|| panic!("{shown}: {status} has no content type")).to_owned();
    let media = content.get(&kind).unwrap_or_else(|| panic!("{shown}: {status} as {kind} is not listed"));
    for body in bodies(&kind, answer).await {
        let schema = if kind == "application/x-ndjson" { schema("FetchedRecord") } else { media["schema"].clone() };
        validate(document, &schema, &body).unwrap_or_else(|why| panic!("{shown}: {status}: {why} in {body}"));
    }
    status
}

/// The JSON of a body: whole, by line, or the first events' data.
async fn bodies(kind: &str, answer: Response) -> Vec<Value> {
    let parse = |text: &str| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    match kind {
        "application/json" => vec![parse(&answer.text().await.unwrap())],
        "application/x-ndjson" => answer.text().await.unwrap().lines().map(parse).collect(),
        "text/plain" => vec![Value::String(answer.text().await.unwrap())],
        // An endless stream: that it began is what there is to see. What it says is seen in `tails`.
        "text/event-stream" => Vec::new(),
        "application/octet-stream" => {
            let whole = stream::once(answer.bytes()).collect::<Vec<_>>().await;
            assert!(whole[0].is_ok());
            Vec::new()
        }
        other => panic!("{other}"),
    }
}
