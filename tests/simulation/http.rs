//! Just enough HTTP/1.1 for a client that talks over the simulated network: one connection per request, never kept.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use pontoon_raft::transport::Network;
use tokio::time::timeout;

use crate::net::TracedNetwork;

/// How long a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);

/// What a broker answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Where to go instead.
    pub(crate) location: Option<String>,
    pub(crate) high_watermark: u64,
    pub(crate) log_start: u64,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Never connected.
    NotSent,
    /// It may have arrived.
    Lost,
}

/// A request.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: String,
    /// Content-Type or Accept, if it has one.
    pub(crate) kind: Option<(&'a str, &'a str)>,
    pub(crate) body: Bytes,
}

/// Asks one broker and waits for its whole answer, at most `patience`.
pub(crate) async fn ask(
    network: &TracedNetwork,
    address: &str,
    ask: Ask<'_>,
    patience: Duration,
) -> Result<Answer, Failed> {
    let connected = timeout(CONNECT_PATIENCE, network.connect(address)).await;
    let stream = connected.map_err(|_| Failed::NotSent)?.map_err(|_| Failed::NotSent)?;
    let mut request = Request::builder().method(ask.method).uri(ask.path).header("host", address);
    request = request.header("prefer", "redirect").header("connection", "close");
    if let Some((name, value)) = ask.kind {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(ask.body)).expect("a request");
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await;
        let answer = match answer {
            Ok(answer) => whole(answer).await,
            Err(error) => Err(error),
        };
        drop(sender);
        connection.abort();
        answer
    };
    match timeout(patience, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(Failed::Lost),
    }
}

async fn whole(answer: hyper::Response<hyper::body::Incoming>) -> Result<Answer, hyper::Error> {
    let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let number = |name: &str| text(name).and_then(|value| value.parse().ok()).unwrap_or(0);
    let (high_watermark, log_start) = (number("pontoon-high-watermark"), number("pontoon-log-start-offset"));
    let (status, location) = (answer.status().as_u16(), text("location"));
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(Answer { status, location, high_watermark, log_start, body })
}
