//! One request and what became of it, for the clients that keep their own books.

use serde::Deserialize;

/// How much of an answer is told.
const EXCERPT: usize = 200;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// With this status and body.
    Status(u16, String),
    /// Nobody was there to take it.
    NoConnection,
    /// Nobody knows.
    Unknown(String),
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    error: String,
    outcome: String,
}

impl Answer {
    /// It certainly changed nothing, by the broker's word or because none was reached.
    pub(super) fn had_no_effect(&self) -> bool {
        match self {
            Self::Status(_, body) => {
                serde_json::from_str::<Refusal>(body).is_ok_and(|refusal| refusal.outcome == "none")
            }
            Self::NoConnection => true,
            Self::Unknown(_) => false,
        }
    }

    /// The code of a refusal; empty if it is none.
    pub(super) fn code(&self) -> String {
        match self {
            Self::Status(_, body) => {
                serde_json::from_str::<Refusal>(body).map_or_else(|_| String::new(), |refusal| refusal.error)
            }
            _ => String::new(),
        }
    }

    /// Its beginning, for people.
    pub(super) fn excerpt(&self) -> String {
        let text = match self {
            Self::Status(status, body) => format!("{status} {body}"),
            Self::NoConnection => "no connection".to_owned(),
            Self::Unknown(why) => why.clone(),
        };
        text.chars().take(EXCERPT).collect()
    }
}

/// Sends a request and reads its answer whole.
pub(super) async fn ask(request: reqwest::RequestBuilder) -> Answer {
    match request.send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            answer
                .text()
                .await
                .map_or_else(|error| Answer::Unknown(error.to_string()), |body| Answer::Status(status, body))
        }
        Err(error) if error.is_connect() => Answer::NoConnection,
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_that_says_so_had_no_effect() {
        let status = |body: &str| Answer::Status(503, body.to_owned());
        let refusal = status(r#"{"error":"NOT_READY","message":"","retriable":true,"outcome":"none"}"#);
        assert!(refusal.had_no_effect() && refusal.code() == "NOT_READY");
        assert!(!status(r#"{"error":"TIMEOUT","outcome":"unknown"}"#).had_no_effect());
        assert!(!status("gateway").had_no_effect());
        assert!(Answer::NoConnection.had_no_effect() && !Answer::Unknown(String::new()).had_no_effect());
    }
}
