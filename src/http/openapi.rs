//! `GET /openapi.json`: the API, described for machines.
//!
//! The document is written by hand in `openapi.json` beside this file, because what matters in it (which refusals there are,
//! and why) stands in no type. It is held to what is served: here its paths and codes to the router's and to [`Code`]'s
//! tables, in `tests/http/openapi.rs` its statuses, content types and schemas to the answers of the running binary, in
//! `tests/http/requests.rs` its parameters and bodies to what the running binary takes and refuses.
//!
//! [`Code`]: crate::error::Code

use axum::http::header;
use axum::response::{IntoResponse, Response};

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub(super) async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::error::Code;
    use crate::http::router::ROUTES;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn it_lists_exactly_the_routes_that_are_served() {
        let document = document();
        let mut listed = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                listed.insert((path.clone(), method.clone()));
            }
        }
        let served = ROUTES.iter().flat_map(|(path, methods)| methods.iter().map(move |method| (path, method)));
        let served: BTreeSet<_> = served.map(|(path, method)| (path.to_string(), method.to_string())).collect();
        assert_eq!(listed, served);
        let ids: Vec<_> = find(&document, "operationId");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), served.len(), "operationId is unique: {ids:?}");
    }

    #[test]
    fn it_lists_exactly_the_codes_there_are_and_their_statuses() {
        let document = document();
        let listed = &document["components"]["schemas"]["Code"]["enum"];
        let codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(listed, &serde_json::json!(codes), "openapi.json, schema Code");
        // 405 and 431 are given where there is no operation, or before there is one.
        for status in Code::ALL.iter().map(|code| code.status()).filter(|status| *status != 405) {
            assert!(document["components"]["responses"].get(status.to_string()).is_some(), "{status} is not described");
        }
    }

    #[test]
    fn it_describes_a_topics_configuration_as_the_configuration_does() {
        let document = document();
        let listed = document["components"]["schemas"]["TopicConfig"]["properties"].as_object().unwrap();
        let listed: Vec<_> =
            listed.iter().map(|(key, of)| (key.as_str(), of["description"].as_str().unwrap())).collect();
        assert_eq!(listed, crate::config::keys::TOPIC_DOCS);
    }

    #[test]
    fn every_reference_leads_somewhere_and_the_version_is_this_one() {
        let document = document();
        let references = find(&document, "$ref");
        assert!(references.len() > 50);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    /// The strings under this key, wherever it is.
    fn find(value: &Value, key: &str) -> Vec<String> {
        match value {
            Value::Object(fields) => {
                let own = fields.get(key).and_then(Value::as_str).map(str::to_owned);
                own.into_iter().chain(fields.values().flat_map(|value| find(value, key))).collect()
            }
            Value::Array(items) => items.iter().flat_map(|item| find(item, key)).collect(),
            _ => Vec::new(),
        }
    }
}
