//! Who is at fault, and what to do: Vault, Kubernetes, PostgreSQL, the network, the application, the settings, or
//! pglease itself. Pure.
//!
//! One finding for each thing that is wrong now. Errors that have been made good since are in the status, and not here.

use serde::{Serialize, Serializer};

mod certificates;
mod files;

use super::blame::{self, Blame};
use super::status::{ErrorStatus, HostStatus, Status};
use super::text::span;
use crate::lease::{ChainError, ChainStatus};

/// One thing that is wrong, or that nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    #[serde(serialize_with = "word_of_fault")]
    pub(super) fault: Fault,
    #[serde(serialize_with = "word_of_severity")]
    pub(super) severity: Severity,
    /// What is wrong, and what it does to clients.
    pub(super) says: String,
    /// What to do about it.
    pub(super) cure: String,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody's, as far as can be seen from here.
    #[default]
    None,
    Vault,
    Kubernetes,
    Postgresql,
    Network,
    Application,
    Settings,
    Pglease,
}

impl Fault {
    /// The word in `/status`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Vault => "vault",
            Self::Kubernetes => "kubernetes",
            Self::Postgresql => "postgresql",
            Self::Network => "network",
            Self::Application => "application",
            Self::Settings => "settings",
            Self::Pglease => "pglease",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    #[default]
    Ok,
    /// Nobody is hurt yet.
    Warning,
    /// Clients are.
    Error,
}

impl Severity {
    /// The word in `/status`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde has it")]
fn word_of_fault<S: Serializer>(fault: &Fault, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(fault.as_str())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde has it")]
fn word_of_severity<S: Serializer>(severity: &Severity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(severity.as_str())
}

/// What is wrong now, the worst first; one finding that says so where nothing is.
pub(super) fn verdict(status: &Status) -> Vec<Finding> {
    let mut findings = Vec::new();
    if status.phase != "serving" {
        findings.push(Finding {
            fault: Fault::Pglease,
            severity: Severity::Warning,
            says: "pglease is stopping: sessions end, and no new ones begin before it is back.".to_owned(),
            cure: "Nothing, if the pod is meant to stop; who sent SIGTERM or asked for the drain is in the log: \
                   drain.start."
                .to_owned(),
        });
    }
    let hosts = status.upstreams.hosts.iter().filter_map(|host| Some((&host.host, of_host(host, status)?)));
    let (failing, hosts): (Vec<_>, Vec<_>) = hosts.unzip();
    let hosts_fail = |chain: &ChainStatus| {
        let mut of_chain =
            status.upstreams.groups.iter().filter(|group| group.vault_path == chain.vault_path);
        of_chain.any(|group| group.hosts.iter().any(|host| failing.contains(&host)))
    };
    findings.extend(status.chains.iter().filter_map(|chain| of_chain(chain, status, hosts_fail(chain))));
    findings.extend(hosts);
    findings.extend(of_vault(status, &findings));
    findings.extend(of_settings(status));
    findings.extend(files::findings(status));
    findings.extend(certificates::findings(status));
    findings.extend(of_seats(status));
    findings.extend(of_transactions(status));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    if findings.is_empty() {
        findings = untried(status);
    }
    if findings.is_empty() {
        findings.push(well(status));
    }
    findings
}

fn well(status: &Status) -> Finding {
    let sessions = &status.sessions;
    Finding {
        says: format!(
            "Vault and PostgreSQL answer, every route has a credential, and {} of {} sessions are open.",
            sessions.open, sessions.max
        ),
        cure: "If the application has errors all the same, they are its own or PostgreSQL's answer to its statements: \
               look into its log, and for its sessions below."
            .to_owned(),
        ..Finding::default()
    }
}

/// What failed at its last attempt, which was long ago: it may be in order by now, and nobody knows.
fn untried(status: &Status) -> Vec<Finding> {
    let hosts = status.upstreams.hosts.iter().filter_map(|host| {
        let error = host.last_error.as_ref().filter(|_| host.failing)?;
        let blame = blame::of_upstream(error.kind, error.code.as_deref(), &error.says);
        if blame.fault == Fault::Application || is_of_another_kind(host, error, status) {
            return None;
        }
        let begin =
            format!("PostgreSQL at {} did not serve the last login, and was not tried since.", host.host);
        Some(blamed(blame, Severity::Warning, &begin, Words::of(error), status.now))
    });
    let vault = &status.vault;
    let of_vault = vault.last_error.as_ref().filter(|_| vault.failing).map(|error| {
        let blame = blame::of_vault(
            error.operation,
            error.kind,
            error.code.as_deref(),
            &error.says,
            vault.login_method,
        );
        let begin = "The last request to Vault failed, and Vault was not tried since; clients are served.";
        blamed(blame, Severity::Warning, begin, Words::of(error), status.now)
    });
    hosts.chain(of_vault).collect()
}

/// A chain without a credential, or with one that has no successor in sight.
fn of_chain(chain: &ChainStatus, status: &Status, hosts_fail: bool) -> Option<Finding> {
    let path = &chain.vault_path;
    if chain.state == "silent" {
        return Some(Finding {
            fault: Fault::Pglease,
            severity: Severity::Error,
            says: format!("The part of pglease that keeps the credentials of {path} does not answer."),
            cure: "Its log says why (process.fault), if it is known. A restart of the pod helps; please report it."
                .to_owned(),
        });
    }
    if chain.state == "ended" {
        return None;
    }
    let serving =
        chain.generations.iter().find(|generation| Some(&generation.generation) == chain.current.as_ref());
    let Some(serving) = serving else {
        let waiting = match chain.clients_waiting {
            0 => "new clients wait, and get 57P03 after listen.connect_wait".to_owned(),
            waiting => format!("{waiting} clients wait now, and get 57P03 after listen.connect_wait"),
        };
        let begin = format!("There is no credential of {path}: {waiting}.");
        return Some(match &chain.last_error {
            Some(error) => {
                blamed(chain_blame(error, status), Severity::Error, &begin, error.into(), status.now)
            }
            None => Finding {
                fault: Fault::None,
                severity: Severity::Warning,
                says: format!("{begin} The first one is being fetched, and nothing has failed yet."),
                cure: "Wait for some seconds, and look again.".to_owned(),
            },
        });
    };

    let error = chain.last_error.as_ref()?;
    let fails = match &chain.rotation {
        Some(rotation) => rotation.attempt != "running" || !serving.proven,
        None => chain.state == "degraded",
    };
    let is_recent = status.now.saturating_sub(error.at) <= RECENT_SECONDS;
    // The hosts say the same of themselves, and more.
    if !fails || !is_recent || error.operation == "proof" && hosts_fail {
        return None;
    }
    let left = serving.lease_seconds.into_iter().chain(serving.token_seconds).min();
    let until = left.map(|left| format!(" for {} more", span(left))).unwrap_or_default();
    let begin =
        format!("The credential of {path} serves clients{until}, and cannot be renewed or replaced now.");
    let severity =
        if left.is_some_and(|left| left <= CLOSE_SECONDS) { Severity::Error } else { Severity::Warning };
    Some(blamed(chain_blame(error, status), severity, &begin, error.into(), status.now))
}

fn chain_blame(error: &ChainError, status: &Status) -> Blame {
    if error.operation == "proof" {
        let blame = blame::of_upstream(error.kind, error.code.as_deref(), &error.says);
        // No application has asked.
        let fault = if blame.fault == Fault::Application { Fault::Settings } else { blame.fault };
        Blame { fault, ..blame }
    } else {
        blame::of_vault(
            error.operation,
            error.kind,
            error.code.as_deref(),
            &error.says,
            status.vault.login_method,
        )
    }
}

/// A host whose last login failed, and not long ago.
fn of_host(host: &HostStatus, status: &Status) -> Option<Finding> {
    let error = host.last_error.as_ref().filter(|_| host.failing)?;
    if status.now.saturating_sub(error.at) > RECENT_SECONDS {
        return None;
    }
    let blame = blame::of_upstream(error.kind, error.code.as_deref(), &error.says);
    let name = &host.host;
    if blame.fault == Fault::Application {
        let begin = format!("PostgreSQL at {name} serves, and refused what a session asked for.");
        return Some(blamed(blame, Severity::Warning, &begin, Words::of(error), status.now));
    }
    if is_of_another_kind(host, error, status) {
        return None;
    }
    let has_another = others_serve(host, status);
    let (severity, then) = if has_another {
        (Severity::Warning, "; another host does")
    } else {
        (Severity::Error, ": new sessions fail")
    };
    let begin = format!("PostgreSQL at {name} did not serve the last login{then}.");
    Some(blamed(blame, severity, &begin, Words::of(error), status.now))
}

/// A server of another kind than is wanted is in order, where there is one of that kind.
fn is_of_another_kind(host: &HostStatus, error: &ErrorStatus, status: &Status) -> bool {
    error.kind == "session_attrs" && others_serve(host, status)
}

/// Whether each upstream that has this host has another that serves.
fn others_serve(host: &HostStatus, status: &Status) -> bool {
    let hosts = &status.upstreams.hosts;
    let serves =
        |name: &String| *name != host.host && hosts.iter().any(|other| other.host == *name && serves(other));
    let mut groups = status.upstreams.groups.iter().filter(|group| group.hosts.contains(&host.host));
    groups.all(|group| group.hosts.iter().any(serves))
}

/// Whether it lets in who has the right to, be it that it refused what a client asked for last.
fn serves(host: &HostStatus) -> bool {
    let of_client = |error: &ErrorStatus| {
        blame::of_upstream(error.kind, error.code.as_deref(), &error.says).fault == Fault::Application
    };
    host.last_ok_at.is_some() && (!host.failing || host.last_error.as_ref().is_some_and(of_client))
}

/// Vault, where it fails and no chain has said so.
fn of_vault(status: &Status, findings: &[Finding]) -> Option<Finding> {
    let vault = &status.vault;
    let error = vault.last_error.as_ref().filter(|_| vault.failing)?;
    let is_said = findings.iter().any(|finding| finding.says.contains(&error.says));
    let is_recent = status.now.saturating_sub(error.at) <= RECENT_SECONDS;
    if is_said || !is_recent {
        return None;
    }
    let blame =
        blame::of_vault(error.operation, error.kind, error.code.as_deref(), &error.says, vault.login_method);
    let begin = "The last request to Vault failed; clients are served.";
    Some(blamed(blame, Severity::Warning, begin, Words::of(error), status.now))
}

/// The file of settings, where it is of no use as it is now.
fn of_settings(status: &Status) -> Option<Finding> {
    let (error, at) = status.config.last_error()?;
    let file = status.config.file().unwrap_or_default();
    let ago = span(status.now.saturating_sub(at));
    Some(Finding {
        fault: Fault::Settings,
        severity: Severity::Warning,
        says: format!(
            "{file} is of no use as it is now, and the settings read before stay in effect; seen {ago} ago: {error}"
        ),
        cure: "Mend the file, or put back what it held: it is read again when it changes. A pod that starts with it \
               does not serve."
            .to_owned(),
    })
}

fn of_seats(status: &Status) -> Option<Finding> {
    let (open, max) = (status.sessions.open, status.sessions.max);
    let severity = match () {
        () if open >= max => Severity::Error,
        () if open >= max - max / 10 => Severity::Warning,
        () => return None,
    };
    let then = if open >= max {
        "further clients are refused with 53300"
    } else {
        "soon clients are refused with 53300"
    };
    Some(Finding {
        fault: Fault::Application,
        severity,
        says: format!("{open} of {max} sessions are open: {then}."),
        cure: "Make the application's pools smaller, or look for connections that it does not give back; else raise \
               listen.max_sessions, within PostgreSQL's max_connections."
            .to_owned(),
    })
}

fn of_transactions(status: &Status) -> Option<Finding> {
    let open = status.sessions.list.iter().filter(|session| session.state == "in_transaction");
    let long: Vec<_> = open.filter(|session| session.state_seconds >= LONG_SECONDS).collect();
    let longest = long.iter().max_by_key(|session| session.state_seconds)?;
    Some(Finding {
        fault: Fault::Application,
        severity: Severity::Warning,
        says: format!(
            "{} sessions have an open transaction and do nothing in it, {} for {}: they keep locks and hold up VACUUM.",
            long.len(),
            longest.session,
            span(longest.state_seconds)
        ),
        cure: "The application has forgotten to commit or waits for something else: idle_in_transaction_session_timeout \
               ends such transactions."
            .to_owned(),
    })
}

/// An error's own words, and when it was.
#[derive(Clone, Copy)]
struct Words<'a> {
    says: &'a str,
    at: u64,
}

impl<'a> Words<'a> {
    fn of(error: &'a ErrorStatus) -> Self {
        Self { says: &error.says, at: error.at }
    }
}

impl<'a> From<&'a ChainError> for Words<'a> {
    fn from(error: &'a ChainError) -> Self {
        Self { says: &error.says, at: error.at }
    }
}

fn blamed(blame: Blame, severity: Severity, begin: &str, error: Words<'_>, now: u64) -> Finding {
    let ago = span(now.saturating_sub(error.at));
    Finding {
        fault: blame.fault,
        severity,
        says: format!("{begin} {} {ago} ago: {}", blame.what, error.says),
        cure: blame.cure.to_owned(),
    }
}

/// What failed longer ago and has not been tried since says little of now.
const RECENT_SECONDS: u64 = 15 * 60;
/// A credential that ends so soon, and has no successor, is as good as gone for a person.
const CLOSE_SECONDS: u64 = 2 * 60;
/// A transaction that nothing happens in for so long is forgotten.
const LONG_SECONDS: u64 = 5 * 60;

#[cfg(test)]
pub(super) mod tests;
