//! Every refusal has the same body, and its status comes from the one table of codes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::{ErrorBody, RecordResult, TopicErrorBody};
use crate::error::{Code, Error};
use crate::partition::Offsets;

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What is wrong.
    pub(super) error: Error,
    /// With `OFFSET_OUT_OF_RANGE`: what is in range.
    pub(super) offsets: Option<Offsets>,
    /// Of a produce by key: what became of each record.
    pub(super) results: Option<Vec<RecordResult>>,
    /// The rest of the body is still on its way: nothing further can be read off this connection.
    pub(super) close: bool,
}

impl Refusal {
    /// The request is malformed.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Error::new(Code::InvalidRequest, message).into()
    }

    /// The same, and the connection is closed.
    pub(super) fn and_close(mut self) -> Self {
        self.close = true;
        self
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, offsets: None, results: None, close: false }
    }
}

impl From<(Code, String)> for Refusal {
    fn from((code, message): (Code, String)) -> Self {
        Error::new(code, message).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.error.code;
        let mut body = ErrorBody::from(&self.error);
        body.log_start_offset = self.offsets.map(|offsets| offsets.log_start_offset.0);
        body.high_watermark = self.offsets.map(|offsets| offsets.high_watermark.0);
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after_ms = body.retry_after_ms;
        let mut response = match self.results {
            None => (status, Json(body)).into_response(),
            Some(results) => (status, Json(TopicErrorBody { error: body, results })).into_response(),
        };
        response.extensions_mut().insert(code); // The router counts it.
        if let Some(ms) = retry_after_ms {
            // The header knows whole seconds only; the body has the exact figure.
            let seconds = HeaderValue::from(ms.div_ceil(1000).max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.close {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_that_http_knows() {
        for code in Code::ALL {
            let response = Refusal::from(Error::new(*code, "why")).into_response();
            assert_eq!(response.status().as_u16(), code.status(), "{code}");
            assert!(response.status().is_client_error() || response.status().is_server_error(), "{code}");
            let waits = matches!(code.status(), 429 | 503);
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), waits, "{code}");
        }
    }

    #[tokio::test]
    async fn out_of_range_tells_what_is_in_range() {
        let offsets = Offsets { log_start_offset: 3.into(), high_watermark: 9.into(), log_end_offset: 9.into() };
        let error = Error::new(Code::OffsetOutOfRange, "offset 10 is not in 3..=9");
        let response = Refusal { offsets: Some(offsets), ..Refusal::from(error) }.into_response();
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let body: ErrorBody = serde_json::from_slice(&body).unwrap();
        assert_eq!((body.log_start_offset, body.high_watermark), (Some(3), Some(9)));
    }
}
