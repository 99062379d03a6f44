//! Which path leads where, and what every request passes on its way: the guard, the count, the net under a panic.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use futures_util::FutureExt;
use tokio::time::Instant;
use tracing::{debug, error};

use crate::config::host_of;
use crate::error::{Code, Error, WriteOutcome};
use crate::http::path::check_path;
use crate::http::refusal::Refusal;
use crate::http::request::text_header;
use crate::http::{Shared, fetch, groups, keyed, openapi, produce, topics};

/// One table: the router, and `ROUTES` to hold the API's description to.
macro_rules! routes {
    ($($path:literal => $($method:ident $handler:path),+;)+) => {
        /// Every path, and the methods it has.
        #[cfg(test)]
        pub(super) const ROUTES: &[(&str, &[&str])] = &[$(($path, &[$(stringify!($method)),+])),+];

        fn routes() -> Router<Arc<Shared>> {
            Router::new()$(.route($path, MethodRouter::new()$(.$method($handler))+))+
        }
    };
}

// The whole API (API.md). What is added here is described in openapi.json.
routes! {
    "/v1/topics" => get topics::list, post topics::create;
    "/v1/topics/{topic}" => get topics::describe, patch topics::alter, delete topics::delete;
    "/v1/topics/{topic}/records" => post keyed::produce;
    "/v1/topics/{topic}/partitions/{partition}/records" => get fetch::fetch, post produce::produce;
    "/v1/topics/{topic}/partitions/{partition}/offsets" => get fetch::offsets;
    "/v1/producers" => post topics::create_producer;
    "/v1/groups" => get groups::list;
    "/v1/groups/{group}" => get groups::describe;
    "/v1/groups/{group}/offsets" => get groups::offsets, put groups::commit;
    "/v1/cluster" => get topics::cluster;
    "/v1/brokers" => get topics::brokers;
    "/healthz" => get topics::healthz;
    "/readyz" => get topics::readyz;
    "/metrics" => get topics::show_metrics;
    "/openapi.json" => get openapi::show;
}

/// The API, with what every request passes.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let routes = routes().fallback(topics::not_found).method_not_allowed_fallback(topics::method_not_allowed);
    observed(routes.layer(from_fn_with_state(Arc::clone(&shared), guard)), shared)
}

fn observed(routes: Router<Arc<Shared>>, shared: Arc<Shared>) -> Router {
    routes.layer(from_fn_with_state(Arc::clone(&shared), observe)).with_state(shared)
}

/// Refuses what a foreign web page could have made a browser send, and paths that would be read differently by others.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Result<Response, Refusal> {
    check_origin(request.headers(), request.uri(), &shared.hosts)?;
    check_path(request.uri())?;
    Ok(next.run(request).await)
}

/// A page of another site can make a browser send a `text/plain` POST here, and by rebinding its own name to this address
/// read the answers too. The first shows in `Origin`, the second in `Host`. An address as `Host` is no name that could have
/// been rebound.
fn check_origin(headers: &HeaderMap, uri: &Uri, hosts: &[String]) -> Result<(), Refusal> {
    let host = text_header(headers, header::HOST.as_str())?;
    let authority = uri.authority().map(|authority| authority.as_str());
    for named in [host, authority].into_iter().flatten() {
        if !own_host(named, hosts) {
            let why = format!("Host {named:?} is not this broker's; http.hosts can add names");
            return Err((Code::ForeignOrigin, why).into());
        }
    }
    let Some(origin) = text_header(headers, header::ORIGIN.as_str())? else { return Ok(()) };
    let same = origin.split_once("://").is_some_and(|(_, named)| Some(named) == authority.or(host));
    if same { Ok(()) } else { Err((Code::ForeignOrigin, format!("Origin {origin:?} is not this broker's")).into()) }
}

fn own_host(named: &str, hosts: &[String]) -> bool {
    // Without a port, an IPv6 address in brackets would be cut at its last colon.
    let host = if named.ends_with(']') { named.trim_matches(['[', ']']) } else { host_of(named) };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host.parse::<std::net::IpAddr>().is_ok() || hosts.contains(&host)
}

/// Counts and times every request, and answers what is left without an answer: 500 where a handler panicked (one defect is one
/// request's), and those that still wait for a broker that is closed.
async fn observe(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    // Shared with the request, not copied.
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = tokio::select! {
        biased;
        answered = AssertUnwindSafe(next.run(request)).catch_unwind() => answered.unwrap_or_else(|_| {
            error!(%method, path = uri.path(), "a request handler panicked");
            let why = "the request met a defect of Pontoon; see the broker's log";
            abandoned(&method, Code::Internal, why).into_response()
        }),
        () = shared.over() => {
            let code = if method.is_safe() { Code::NotReady } else { Code::OutcomeUnknown };
            abandoned(&method, code, "the broker has stopped under way").into_response()
        }
    };
    let (status, took) = (response.status().as_u16(), began.elapsed());
    debug!(%method, path = uri.path(), status, ?took, "answered");
    if let Some(code) = response.extensions().get::<Code>() {
        shared.metrics.refusals.count(*code);
    }
    shared.metrics.answered(route.as_ref().map_or("other", MatchedPath::as_str), &method, status, took);
    response
}

/// Of a request whose handler came to no end. What it was to change may be changed, or may yet be.
fn abandoned(method: &Method, code: Code, why: &str) -> Refusal {
    let outcome = if method.is_safe() { WriteOutcome::None } else { WriteOutcome::Unknown };
    Error::new(code, why).with_outcome(outcome).into()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{HeaderName, HeaderValue};
    use axum::routing::any;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use pontoon_raft::types::BrokerId;

    use super::*;
    use crate::api::ErrorBody;
    use crate::config::Config;
    use crate::http::{Server, Stage};

    /// What becomes of a request by each method to a handler that comes to no end: its status, its code and its outcome.
    async fn abandoned_by(stage: Stage, route: MethodRouter<Arc<Shared>>) -> Vec<(u16, String, WriteOutcome)> {
        let mut config = Config::new(BrokerId(1), "unused".into());
        config.http.listen = "127.0.0.1:0".into();
        let server = Server::bind(&config).await.unwrap();
        server.shared.stage.send_replace(stage);
        let router = observed(Router::new().route("/", route), Arc::clone(&server.shared));
        let mut answers = Vec::new();
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            let request = axum::http::Request::builder().method(method).uri("/").body(Body::empty()).unwrap();
            let answer = TowerToHyperService::new(router.clone()).call(request).await.unwrap();
            let status = answer.status().as_u16();
            let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
            if method != "HEAD" {
                let body: ErrorBody = serde_json::from_slice(&body).unwrap();
                answers.push((status, body.error, body.outcome));
            }
        }
        answers
    }

    #[tokio::test]
    async fn of_a_write_whose_handler_panicked_nobody_knows_the_outcome() {
        let panics = || async {
            if true {
                panic!("a test's handler");
            }
        };
        let answers = abandoned_by(Stage::Serving, any(panics)).await;
        assert_eq!(answers[0], (500, "INTERNAL".into(), WriteOutcome::None));
        assert_eq!(answers[1..], vec![(500, "INTERNAL".into(), WriteOutcome::Unknown); 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_broker_that_is_closed_is_answered_before_its_connection_ends() {
        let answers = abandoned_by(Stage::Closed, any(std::future::pending::<()>)).await;
        assert_eq!(answers[0], (503, "NOT_READY".into(), WriteOutcome::None));
        assert_eq!(answers[1..], vec![(504, "OUTCOME_UNKNOWN".into(), WriteOutcome::Unknown); 4]);
    }

    fn check(uri: &str, pairs: &[(&'static str, &'static str)]) -> Result<(), Code> {
        let pairs = pairs.iter();
        let headers: HeaderMap =
            pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect();
        let hosts = ["localhost".to_owned(), "broker-1".to_owned()];
        check_origin(&headers, &uri.parse().unwrap(), &hosts).map_err(|refusal| refusal.error.code)
    }

    #[test]
    fn own_names_and_addresses_pass() {
        for host in [
            "localhost",
            "LOCALHOST:8090",
            "localhost.:8090",
            "broker-1:8090",
            "127.0.0.1:8090",
            "10.1.2.3",
            "[::1]:8090",
            "[::1]",
        ] {
            assert_eq!(check("/", &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(check("/", &[]), Ok(()));
    }

    #[test]
    fn a_foreign_host_is_refused() {
        for host in ["evil.example", "evil.example:8090", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert_eq!(check("/", &[("host", host)]), Err(Code::ForeignOrigin), "{host}");
        }
        assert_eq!(check("http://evil.example/", &[("host", "localhost")]), Err(Code::ForeignOrigin));
    }

    #[test]
    fn a_foreign_origin_is_refused_and_its_own_is_not() {
        let with = |origin| check("/", &[("host", "localhost:8090"), ("origin", origin)]);
        assert_eq!(with("http://localhost:8090"), Ok(()));
        for origin in ["http://evil.example", "http://localhost:3000", "null", "http://localhost", "localhost:8090"] {
            assert_eq!(with(origin), Err(Code::ForeignOrigin), "{origin}");
        }
    }
}
