//! `/metrics` in the format that the scraper reads: OpenMetrics where it says so, else the text format of before,
//! which everything reads, `promtool check metrics` too.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// The answer to a scrape with these `headers`. `encoded` is in the OpenMetrics format.
pub(crate) fn answer(headers: &HeaderMap, encoded: Result<String, std::fmt::Error>) -> Response {
    let Ok(encoded) = encoded else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    if reads_openmetrics(headers) {
        ([(header::CONTENT_TYPE, OPENMETRICS)], encoded).into_response()
    } else {
        ([(header::CONTENT_TYPE, TEXT)], classic(&encoded)).into_response()
    }
}

/// Prometheus names it with one weight or another, and others do not name it at all.
fn reads_openmetrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.trim_start().starts_with(OPENMETRICS_KIND))
}

/// The same metrics in the text format 0.0.4: a counter is called by the name of its samples, an info is a gauge, and
/// there is neither a unit nor an end.
pub(super) fn classic(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        let kind =
            |line: &str| line.strip_prefix("# TYPE ")?.split_once(' ').map(|(_, kind)| kind.to_owned());
        let line = match line.strip_prefix("# HELP ").and_then(|head| head.split_once(' ')) {
            Some((name, help)) => {
                let kind = lines.peek().and_then(|line| kind(line)).unwrap_or_default();
                format!("# HELP {name}{} {help}", suffix(&kind))
            }
            None => match line.strip_prefix("# TYPE ").and_then(|head| head.split_once(' ')) {
                Some((name, "info")) => format!("# TYPE {name}_info gauge"),
                Some((name, kind)) => format!("# TYPE {name}{} {kind}", suffix(kind)),
                None if line.starts_with('#') => continue,
                None => line.to_owned(),
            },
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// What samples of this kind have behind the metric's name.
pub(super) fn suffix(kind: &str) -> &'static str {
    match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    }
}

const OPENMETRICS_KIND: &str = "application/openmetrics-text";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, content_type) in [
            (Some(prometheus), OPENMETRICS),
            (Some("text/plain, application/openmetrics-text; version=1.0.0"), OPENMETRICS),
            (Some("*/*"), TEXT),
            (Some("text/html,application/xhtml+xml"), TEXT),
            (Some("\u{e9}"), TEXT),
            (None, TEXT),
        ] {
            let value = accept.map(|accept| HeaderValue::from_bytes(accept.as_bytes()).unwrap());
            let headers: HeaderMap = value.into_iter().map(|value| (header::ACCEPT, value)).collect();
            let answer = answer(&headers, Ok("# EOF\n".to_owned()));
            assert_eq!(answer.headers()[header::CONTENT_TYPE], content_type, "{accept:?}");
        }
    }

    #[test]
    fn text_of_before_has_the_names_of_the_samples() {
        let openmetrics = "# HELP a_b A build.\n# TYPE a_b info\na_b_info{version=\"1\"} 1\n\
                           # HELP c Count.\n# TYPE c counter\nc_total{host=\"# HELP \"} 1\n\
                           # HELP d_seconds Time.\n# TYPE d_seconds gauge\n# UNIT d_seconds seconds\nd_seconds 2\n# EOF\n";
        let text = "# HELP a_b_info A build.\n# TYPE a_b_info gauge\na_b_info{version=\"1\"} 1\n\
                    # HELP c_total Count.\n# TYPE c_total counter\nc_total{host=\"# HELP \"} 1\n\
                    # HELP d_seconds Time.\n# TYPE d_seconds gauge\nd_seconds 2\n";
        assert_eq!(classic(openmetrics), text);
    }
}
