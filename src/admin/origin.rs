//! Whether a request was made by somebody on this machine, or by a web page through a browser on it. Pure.
//!
//! A browser lets a page of any site send requests to loopback, with few headers of the page's own choosing; it says
//! itself where they come from, by `Origin` and `Sec-Fetch-Site`. A page whose name was made to point here (DNS
//! rebinding) is of the same origin as this port, but names itself as `Host`.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It names another host.
    Host,
    /// A web page has had it sent.
    Page,
    /// It has the body of a form, which a web page could have sent.
    Form,
}

impl Refusal {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Host => "ask for localhost, 127.0.0.1 or [::1]\n",
            Self::Page => "not for web pages\n",
            Self::Form => "not for forms: send no body\n",
        }
    }
}

pub(super) fn judge(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    if !names_loopback(headers, uri) {
        return Err(Refusal::Host);
    }
    // What a page reads of its own origin by GET has no Origin; the page at `/` does nothing else.
    if headers.contains_key(header::ORIGIN) {
        return Err(Refusal::Page);
    }
    let is_read = *method == Method::GET || *method == Method::HEAD;
    let sites = headers.get_all(SEC_FETCH_SITE);
    let is_own = |site: &HeaderValue| site == "same-origin" || site == "none";
    if !is_read && sites.iter().next().is_some() {
        return Err(Refusal::Page);
    }
    if !sites.iter().all(is_own) && !is_link(headers) {
        return Err(Refusal::Page);
    }
    if !is_read && headers.get_all(header::CONTENT_TYPE).iter().any(is_of_form) {
        return Err(Refusal::Form);
    }
    Ok(())
}

/// Somebody has followed a link, as from a runbook: the page that had it sees nothing of the answer.
fn is_link(headers: &HeaderMap) -> bool {
    let is = |name: &HeaderName, value: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().is_some_and(|first| first == value) && values.next().is_none()
    };
    is(&SEC_FETCH_MODE, "navigate") && is(&SEC_FETCH_DEST, "document")
}

/// Whether it is one of the types that a page may send to anybody without asking them first.
fn is_of_form(content_type: &HeaderValue) -> bool {
    let Ok(text) = content_type.to_str() else { return true };
    let kind = text.split([';', ',']).next().unwrap_or_default().trim();
    ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]
        .iter()
        .any(|form| kind.eq_ignore_ascii_case(form))
}

/// Whether the request names this machine as its host, and nothing else.
fn names_loopback(headers: &HeaderMap, uri: &Uri) -> bool {
    let of_header = |host: &HeaderValue| {
        let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        authority.is_some_and(|authority| is_loopback(&authority))
    };
    let mut hosts = headers.get_all(header::HOST).iter();
    hosts.next().is_some_and(of_header) && hosts.all(of_header) && uri.authority().is_none_or(is_loopback)
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(method: &str, uri: &str, lines: &[&str]) -> Result<(), Refusal> {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        judge(&method.parse().unwrap(), &uri.parse().unwrap(), &headers)
    }

    #[test]
    fn only_a_name_of_this_machine_is_answered() {
        for (host, answered) in [
            ("localhost:9633", true),
            ("LOCALHOST", true),
            ("127.0.0.1:1", true),
            ("127.8.9.10", true),
            ("[::1]:9633", true),
            ("", false),
            ("pglease.example.com:9633", false),
            ("localhost.example.com", false),
            ("localhost.", false),
            ("127.0.0.1.example.com", false),
            ("10.0.0.1:9633", false),
            ("0.0.0.0:9633", false),
            ("2130706433", false),
            ("[::2]", false),
            ("[::ffff:127.0.0.1]", false),
            ("localhost@example.com", false),
        ] {
            let expected = if answered { Ok(()) } else { Err(Refusal::Host) };
            assert_eq!(judged("GET", "/status", &[&format!("host: {host}")]), expected, "{host}");
        }
        assert_eq!(judged("GET", "/", &[]), Err(Refusal::Host));
        assert_eq!(judged("GET", "/", &["host: localhost", "host: example.com"]), Err(Refusal::Host));
        assert_eq!(judged("GET", "http://example.com/", &["host: localhost"]), Err(Refusal::Host));
        assert_eq!(judged("GET", "http://localhost/", &["host: localhost"]), Ok(()));
    }

    #[test]
    fn nothing_that_a_page_of_another_site_can_send_is_answered() {
        let page = Err(Refusal::Page);
        for (method, lines, expected) in [
            // A command of pglease's, curl.
            ("GET", &[][..], Ok(())),
            ("POST", &[], Ok(())),
            ("POST", &["content-type: application/json"], Ok(())),
            // Typed into a browser, and what the page at `/` fetches.
            (
                "GET",
                &["sec-fetch-site: none", "sec-fetch-mode: navigate", "sec-fetch-dest: document"],
                Ok(()),
            ),
            (
                "GET",
                &["sec-fetch-site: same-origin", "sec-fetch-mode: cors", "sec-fetch-dest: empty"],
                Ok(()),
            ),
            // A link in a runbook.
            (
                "GET",
                &["sec-fetch-site: cross-site", "sec-fetch-mode: navigate", "sec-fetch-dest: document"],
                Ok(()),
            ),
            // A frame, a picture, a script, a fetch; a page at another port of this machine.
            (
                "GET",
                &["sec-fetch-site: cross-site", "sec-fetch-mode: navigate", "sec-fetch-dest: iframe"],
                page,
            ),
            (
                "GET",
                &["sec-fetch-site: cross-site", "sec-fetch-mode: no-cors", "sec-fetch-dest: image"],
                page,
            ),
            (
                "GET",
                &["sec-fetch-site: same-site", "sec-fetch-mode: no-cors", "sec-fetch-dest: script"],
                page,
            ),
            ("GET", &["origin: http://localhost:3000", "sec-fetch-site: same-site"], page),
            ("GET", &["origin: null"], page),
            ("GET", &["sec-fetch-site: none", "sec-fetch-site: cross-site"], page),
            // A form, with and without what older browsers do not send.
            (
                "POST",
                &["origin: https://example.com", "sec-fetch-site: cross-site", "sec-fetch-mode: navigate"],
                page,
            ),
            (
                "POST",
                &["sec-fetch-site: cross-site", "sec-fetch-mode: navigate", "sec-fetch-dest: document"],
                page,
            ),
            ("POST", &["sec-fetch-site: same-origin"], page),
            ("POST", &["origin: http://localhost:9633"], page),
            ("POST", &["content-type: application/x-www-form-urlencoded"], Err(Refusal::Form)),
            ("POST", &["content-type: Text/Plain;charset=UTF-8"], Err(Refusal::Form)),
            ("POST", &["content-type: multipart/form-data; boundary=x"], Err(Refusal::Form)),
            ("POST", &["content-type: application/json", "content-type: text/plain"], Err(Refusal::Form)),
        ] {
            let lines: Vec<_> = ["host: localhost:9633"].iter().chain(lines).copied().collect();
            assert_eq!(judged(method, "/drain", &lines), expected, "{method} {lines:?}");
        }
    }
}
