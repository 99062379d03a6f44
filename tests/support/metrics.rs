//! What a broker's `/metrics` says.

use reqwest::StatusCode;

use super::Cluster;

impl Cluster {
    /// A broker's `/metrics`.
    pub async fn metrics(&self, id: u32) -> String {
        let response = self.http.get(format!("{}/metrics", self.url(id))).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        response.text().await.unwrap()
    }

    /// A broker's figure of this name: see [`metric`].
    pub async fn metric(&self, id: u32, name: &str) -> f64 {
        metric(&self.metrics(id).await, name)
    }
}

/// The sum of a metric over its series (a histogram's count). It must be one that is served; until something has happened, some have
/// no series.
pub fn metric(text: &str, name: &str) -> f64 {
    let count = format!("{name}_count");
    let of = |line: &str| {
        let starts = |name: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        (starts(name) || starts(&count)).then(|| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
    };
    assert!(text.contains(&format!("# TYPE {name} ")), "no {name} in {text}");
    text.lines().filter_map(of).sum()
}
