//! The allowed differences, in one place, each with its reason. What is not here is a fault.

use std::collections::BTreeMap;

use super::play::Transcript;
use super::script::{Names, Script, Who};
use super::seen::Seen;

/// One allowed difference.
pub(super) struct Difference {
    pub(super) name: &'static str,
    pub(super) cause: Cause,
    /// What a client gets of PostgreSQL, and of pglease.
    pub(super) what: &'static str,
    pub(super) why: &'static str,
    /// Takes the difference out of what one client heard.
    hide: fn(&mut Vec<Seen>, &Side<'_>),
}

/// Where a difference comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// pglease stands between.
    Pglease,
    /// Two sessions of the same server differ so as well.
    Session,
}

/// Who has heard it.
pub(super) struct Side<'a> {
    pub(super) is_through: bool,
    /// What the client calls itself.
    pub(super) user: &'a str,
    pub(super) script: &'a str,
    /// Whether it has its own answers to who asks for a proof.
    pub(super) is_of_authentication: bool,
    /// PostgreSQL's.
    pub(super) major: u16,
    pub(super) pids: &'a BTreeMap<Who, i32>,
}

pub(super) const ALLOWED: &[Difference] = &[
    Difference {
        name: "user name",
        cause: Cause::Pglease,
        what: "The name that the client gives itself decides on the route and nothing else. `session_user`, `session_authorization` and whatever shows them have the leased name.",
        why: "The leased name is who the session is; only authentication is replaced.",
        hide: |heard, side| {
            // As PostgreSQL quotes it, escaped as it is shown.
            let name = format!("\\\"{}\\\"", side.user);
            texts(heard, |text| {
                if text.contains(&name) {
                    *text = text.replace(&name, "<user>");
                }
            });
            for seen in heard.iter_mut().filter(|seen| seen.part("name") == Some("session_authorization")) {
                if let Some(value) = seen.part_mut("value") {
                    "<leased>".clone_into(value);
                }
            }
        },
    },
    Difference {
        name: "authentication",
        cause: Cause::Pglease,
        what: "Clients are asked for what `listen.auth` says, not for what the server would ask of them: for nothing, or for SCRAM.",
        why: "It is what pglease is for.",
        hide: |heard, side| {
            if !side.is_of_authentication {
                heard.retain(|seen| !seen.is("R") || seen.part("request") == Some("0"));
            }
        },
    },
    Difference {
        name: "protocol version",
        cause: Cause::Pglease,
        what: "pglease speaks protocol 3.0 to 3.2 as PostgreSQL 18 does, in front of older servers as well: NegotiateProtocolVersion and errors say 3.2 where those say 3.0, a secret has 32 bytes where 3.2 was asked for, and TLS may begin at once, with ALPN.",
        why: "What a client may speak does not change with the server behind pglease.",
        hide: |heard, side| {
            if side.major < 18 {
                heard.retain(|seen| !seen.is("v"));
                for seen in heard.iter_mut() {
                    for (_, text) in &mut seen.parts {
                        *text = text.replace("server supports 3.0 to 3.2", "server supports 3.0 to 3.0");
                    }
                    if seen.is("K")
                        && let Some(secret) = seen.part_mut("secret")
                    {
                        "of 4 bytes".clone_into(secret);
                    }
                }
            }
        },
    },
    Difference {
        name: "cancel secret",
        cause: Cause::Pglease,
        what: "The secret of BackendKeyData is one of pglease's own. The process ID is the backend's own.",
        why: "A client must not hold what cancels a statement past pglease, nor learn it of another client.",
        hide: |heard, _| {
            for seen in heard.iter_mut().filter(|seen| seen.is("K")) {
                if let Some(secret) = seen.part_mut("secret").filter(|secret| !secret.starts_with("of ")) {
                    *secret = format!("of {} bytes", escaped_len(secret));
                }
            }
        },
    },
    Difference {
        name: "place in the source",
        cause: Cause::Pglease,
        what: "Errors of pglease's own have no fields F, L and R.",
        why: "These are places in PostgreSQL's source.",
        hide: |heard, _| {
            // Only before a session has begun does pglease answer instead of the server.
            if !heard.iter().any(|seen| seen.is("K")) {
                let own = |seen: &&mut Seen| {
                    seen.is("E")
                        && ["08P01", "0A000", "28000", "28P01"].contains(&seen.part("C").unwrap_or_default())
                };
                for seen in heard.iter_mut().filter(own) {
                    seen.parts.retain(|(name, _)| !["F", "L", "R"].contains(&name.as_str()));
                }
            }
        },
    },
    Difference {
        name: "last words",
        cause: Cause::Pglease,
        what: "Where the server closes a session without a word (a message that says it is shorter than its own length word, a crash), the client gets FATAL `08006`.",
        why: "The application's log says what happened, and which side of pglease it happened on.",
        hide: |heard, side| {
            let is_lost = |seen: &Seen| seen.is("E") && seen.part("C") == Some("08006");
            if side.is_through && heard.len() >= 2 && is_lost(&heard[heard.len() - 2]) {
                heard.remove(heard.len() - 2);
            }
        },
    },
    Difference {
        name: "reset",
        cause: Cause::Pglease,
        what: "Where the server closes a connection with unread input, which resets it, pglease reads on for up to a second and closes in order.",
        why: "A reset can take the last words away before the client has read them.",
        hide: |heard, _| {
            for seen in heard.iter_mut().filter(|seen| seen.is("end")) {
                seen.parts.retain(|(name, _)| name != "is");
            }
        },
    },
    Difference {
        name: "TLS alert",
        cause: Cause::Pglease,
        what: "What is no TLS, or of another protocol, is told so by an alert or by the end of the connection, each side in its own way.",
        why: "Two implementations of TLS choose differently; in neither case does anything else follow.",
        hide: |heard, _| {
            for seen in heard.iter_mut().filter(|seen| seen.is("end")) {
                seen.parts.retain(|(name, value)| name != "behind" || !value.starts_with("\\x15\\x03"));
            }
        },
    },
    Difference {
        name: "hang-up during login",
        cause: Cause::Pglease,
        what: "A client that closes its side behind the StartupMessage, having asked for nothing, may get no greeting any more.",
        why: "It has gone away, for all that can be seen, and nobody logs in for nobody.",
        hide: |heard, side| {
            if side.script == HANG_UP {
                heard.clear();
            }
        },
    },
    Difference {
        name: "length of a StartupMessage",
        cause: Cause::Pglease,
        what: "One of nearly 10,004 bytes, the most that the server takes, gets FATAL `08001`.",
        why: "With the leased name in the place of a shorter one it is too long for the server.",
        hide: |heard, side| {
            if side.script == LONGEST {
                heard.clear();
            }
        },
    },
    Difference {
        name: "process ID",
        cause: Cause::Session,
        what: "Each session has a process of its own. Compared is that the same one is meant each time: in BackendKeyData, NotificationResponse and errors.",
        why: "Two sessions are never in one process.",
        hide: |heard, side| {
            let label = |pid: &str| {
                let mut known = side.pids.iter().filter(|(_, known)| known.to_string() == pid);
                known.next().map(|(who, _)| format!("<pid of {who}>"))
            };
            for seen in heard.iter_mut() {
                if (seen.is("K") || seen.is("A"))
                    && let Some(pid) = seen.part_mut("pid")
                {
                    *pid = label(pid).unwrap_or_else(|| "<pid of nobody>".to_owned());
                }
            }
            texts(heard, |text| {
                for word in ["process ", "Process ", "PID ", "pid "] {
                    replace_number(text, word, label);
                }
            });
        },
    },
    Difference {
        name: "nonce and salt",
        cause: Cause::Session,
        what: "The server's part of a SCRAM nonce is by chance, its proof depends on it, and so does the salt of a user that there is not.",
        why: "Nobody may be able to foretell them.",
        hide: |heard, _| {
            for seen in heard.iter_mut().filter(|seen| seen.is("R")) {
                let request = seen.part("request").map(str::to_owned);
                let Some(data) = seen.part_mut("data") else { continue };
                if request.as_deref() == Some("11") {
                    let shown = data.split(',').map(|part| {
                        if part.starts_with("i=") { part } else { part.get(..2).unwrap_or(part) }
                    });
                    *data = shown.collect::<Vec<_>>().join(",");
                } else if request.as_deref() == Some("12") {
                    data.truncate(2);
                }
            }
        },
    },
    Difference {
        name: "temporary schema",
        cause: Cause::Session,
        what: "The schema of a session's temporary tables has a number, which errors show.",
        why: "It is that of the server's slot which the session has got.",
        hide: |heard, _| {
            texts(heard, |text| replace_number(text, "pg_temp_", |_| Some("<slot>".to_owned())));
        },
    },
    Difference {
        name: "object ID",
        cause: Cause::Session,
        what: "Tables that a script makes have object IDs from a counter of the cluster's.",
        why: "The same script played twice gets other ones.",
        hide: |heard, _| {
            for seen in heard.iter_mut().filter(|seen| seen.is("T")) {
                for (_, oid) in seen.parts.iter_mut().filter(|(name, _)| name == "table" || name == "type") {
                    if oid.parse::<u32>().is_ok_and(|oid| oid >= FIRST_OF_USERS) {
                        "<oid>".clone_into(oid);
                    }
                }
            }
        },
    },
    Difference {
        name: "place in the WAL",
        cause: Cause::Session,
        what: "`IDENTIFY_SYSTEM` and what else says where the server's log ends say it for their moment.",
        why: "Other sessions write.",
        hide: |heard, _| {
            for seen in heard.iter_mut().filter(|seen| seen.is("D")) {
                for (_, value) in &mut seen.parts {
                    if is_lsn(value.trim_matches('"')) {
                        "<LSN>".clone_into(value);
                    }
                }
            }
            for seen in heard.iter_mut().filter(|seen| seen.is("E")) {
                if let Some(text) = seen.part_mut("M") {
                    let words = text.split(' ').map(|word| if is_lsn(word) { "<LSN>" } else { word });
                    *text = words.collect::<Vec<_>>().join(" ");
                }
            }
        },
    },
];

/// What every client heard, as it is compared.
pub(super) fn comparable(
    transcript: &Transcript,
    script: &Script,
    is_through: bool,
    names: &Names,
) -> Vec<String> {
    let side = Side {
        script: &script.name,
        is_of_authentication: script.is_of_authentication,
        is_through,
        user: &names.user,
        major: names.major,
        pids: &transcript.pids,
    };
    let mut lines = Vec::new();
    for (who, heard) in &transcript.heard {
        let mut heard = heard.iter().map(Seen::of).collect();
        for difference in ALLOWED {
            (difference.hide)(&mut heard, &side);
        }
        lines.extend(heard.iter().map(|seen| format!("{who}: {seen}")));
    }
    lines
}

/// The words of errors, notices and rows.
fn texts(heard: &mut [Seen], mut change: impl FnMut(&mut String)) {
    for seen in heard.iter_mut().filter(|seen| seen.is("E") || seen.is("N") || seen.is("D")) {
        for (name, text) in &mut seen.parts {
            if name != "C" {
                change(text);
            }
        }
    }
}

/// Replaces each number that stands behind `word` by its label, if it has one.
fn replace_number(text: &mut String, word: &str, label: impl Fn(&str) -> Option<String>) {
    if !text.contains(word) {
        return;
    }
    let mut parts = text.split(word);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, rest) = part.split_at(end);
        out += word;
        out += &label(number).unwrap_or_else(|| number.to_owned());
        out += rest;
    }
    *text = out;
}

/// Of how many bytes this is the escaped form.
fn escaped_len(text: &str) -> usize {
    let mut rest = text.chars();
    let mut len = 0;
    while let Some(c) = rest.next() {
        len += 1;
        if c == '\\' && rest.next() == Some('x') {
            rest.nth(1);
        }
    }
    len
}

/// As in `0/16B3740`.
fn is_lsn(text: &str) -> bool {
    let is_hex = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_hexdigit());
    text.split_once('/').is_some_and(|(high, low)| is_hex(high) && is_hex(low))
}

/// Names of scripts.
pub(super) const HANG_UP: &str = "StartupMessage and the end";
pub(super) const LONGEST: &str = "StartupMessage of 10,004 bytes";

/// `FirstNormalObjectId`.
const FIRST_OF_USERS: u32 = 16_384;
