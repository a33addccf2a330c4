//! Whose fault an error is by its kind, and what to do about it: one table. Pure.
//!
//! Where kinds do not tell enough, as between a port that nobody listens on and a network that swallows packets, the
//! error's words are looked at: they decide on a hint to people, and on nothing else.

use super::verdict::Fault;

/// Whose fault, what is wrong (a clause that "… ago" follows), and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blame {
    pub(super) fault: Fault,
    pub(super) what: &'static str,
    pub(super) cure: &'static str,
}

const fn blame(fault: Fault, what: &'static str, cure: &'static str) -> Blame {
    Blame { fault, what, cure }
}

/// Of a request to Vault: `operation`, `kind` and `code` as in `/status`.
pub(super) fn of_vault(
    operation: &str,
    kind: &str,
    code: Option<&str>,
    says: &str,
    login_method: &str,
) -> Blame {
    let by_kubernetes = matches!(login_method, "kubernetes" | "jwt");
    of_any_request(kind, code, says, by_kubernetes)
        .unwrap_or_else(|| of_refusal(operation, kind, by_kubernetes))
}

/// Whatever was asked.
fn of_any_request(kind: &str, code: Option<&str>, says: &str, by_kubernetes: bool) -> Option<Blame> {
    use Fault as F;
    Some(match (kind, code) {
        ("not_sent" | "no_answer", _) if is_of_our_certificate(says) => blame(
            F::Settings,
            "Vault did not take pglease's certificate, or wants one",
            "Look for the end of vault.client_cert_file, and whether the CA that signed it is in tls_client_ca_file of \
             Vault's listener.",
        ),
        ("file", _) if by_kubernetes => blame(
            F::Kubernetes,
            "The pod's token for the login was of no use",
            "Look whether the ServiceAccount token is projected into the pod where vault.login.jwt_file says: kubectl \
             describe pod shows the volume and its events.",
        ),
        ("file", _) => blame(
            F::Settings,
            "A file that the login needs was of no use",
            "Look for the file that is named, and for who writes it.",
        ),
        ("not_sent", _) => unreached(
            says,
            blame(
                F::Vault,
                "Nobody listened where Vault should be",
                "Look whether Vault runs (vault status, its pods and Service), and whether vault.address has the right \
                 port.",
            ),
            blame(
                F::Network,
                "Vault's name could not be resolved",
                "Look for the name in vault.address, the cluster's DNS, and a NetworkPolicy that keeps the pod from it.",
            ),
            blame(
                F::Vault,
                "Vault's certificate was not believed",
                "Look for what it says of the certificate: its end, its names, and whether vault.ca_file is the CA that \
                 signed it.",
            ),
            blame(
                F::Network,
                "Vault could not be reached",
                "Look whether Vault runs, and for a NetworkPolicy, a firewall or a proxy between the pod and \
                 vault.address.",
            ),
        ),
        ("no_answer", _) => blame(
            F::Vault,
            "Vault took a request and did not answer",
            "Look for Vault's load, its storage and its seal; where its log knows nothing of the request, a proxy \
             between the two is at fault.",
        ),
        ("unavailable", Some("503" | "472" | "473" | "474")) => blame(
            F::Vault,
            "Vault was sealed, or had no active node",
            "vault status on each node says which: unseal it, or look why none becomes active.",
        ),
        ("try_later", _) => blame(
            F::Vault,
            "Vault asked to be left alone for a while",
            "A rate limit quota of Vault's is used up, or a standby lags: the log of Vault says which.",
        ),
        ("redirect", _) => blame(
            F::Settings,
            "Vault sent us to another address",
            "Have vault.address name the active node or a load balancer, or allow the host in vault.redirect_hosts.",
        ),
        _ => return None,
    })
}

/// Vault's own word on what was asked.
fn of_refusal(operation: &str, kind: &str, by_kubernetes: bool) -> Blame {
    use Fault as F;
    match (operation, kind) {
        ("login", "unavailable") if by_kubernetes => blame(
            F::Kubernetes,
            "Vault could not have the pod's token reviewed",
            "Look in Vault's log: Vault must reach the API server, and its own ServiceAccount needs \
             system:auth-delegator.",
        ),
        ("creds" | "static_creds", "unavailable") => blame(
            F::Postgresql,
            "Vault could not make a user in PostgreSQL",
            "Vault's log says why: PostgreSQL may be away for Vault, or not accept the user that Vault manages it with, \
             or refuse a creation statement.",
        ),
        ("renew" | "expire" | "revoke_self", "unavailable") => blame(
            F::Postgresql,
            "Vault failed at a lease of a user in PostgreSQL",
            "Vault's log says why: PostgreSQL may be away for Vault, or refuse a renewal or revocation statement.",
        ),
        (_, "unavailable") => blame(F::Vault, "Vault had an internal error", "Vault's log says what it is."),
        ("login", "denied") if by_kubernetes => blame(
            F::Kubernetes,
            "Vault refused the login of the pod",
            "Compare namespace and ServiceAccount of the pod, and the audience of its token, with Vault's role \
             (vault.login.role); Vault refuses as well where the API server does not confirm the token.",
        ),
        ("login" | "unwrap", "denied" | "bad_request") => blame(
            F::Vault,
            "Vault refused the login",
            "Compare what pglease logs in with (vault.login) with the auth method at that mount: it may have expired, \
             been used up or been revoked.",
        ),
        ("creds" | "static_creds", "denied") => blame(
            F::Vault,
            "Vault's policy did not allow to read a credential",
            "The policy of the login needs read on vault_path: pglease check says what is missing.",
        ),
        ("renew", "bad_request") => blame(
            F::Postgresql,
            "Vault did not renew the lease of a user in PostgreSQL",
            "Vault's log says why: PostgreSQL may be away for Vault, which changes VALID UNTIL there, or somebody has \
             revoked the lease, which pglease replaces by itself.",
        ),
        (_, "not_found") | ("creds" | "static_creds", "bad_request") => blame(
            F::Settings,
            "Vault knew nothing at that path",
            "Compare vault_path, vault.login.mount, vault.login.role and the namespace with what is set up in Vault.",
        ),
        (_, "denied" | "bad_request") => blame(
            F::Vault,
            "Vault refused to keep a credential alive",
            "Lease or token may have been revoked, or the policy forbids it: Vault's audit log says which.",
        ),
        _ => blame(
            F::Settings,
            "What answered did not answer as Vault does",
            "Look whether vault.address is Vault's, and not a proxy's or a login page's.",
        ),
    }
}

/// Of a login at a PostgreSQL host: `kind` and `code` as in `/status`.
pub(super) fn of_upstream(kind: &str, code: Option<&str>, says: &str) -> Blame {
    use Fault as F;
    match (kind, code) {
        _ if is_of_our_certificate(says) => blame(
            F::Settings,
            "It did not take pglease's certificate, or wants one",
            "Look for the end of sslcert in the route's upstream, and whether the CA that signed it is in ssl_ca_file of \
             the server.",
        ),
        ("resolve", _) => blame(
            F::Network,
            "Its name could not be resolved",
            "Look for the name in the route's upstream, the cluster's DNS, and a NetworkPolicy that keeps the pod from \
             it.",
        ),
        ("connect" | "timeout", _) => unreached(
            says,
            blame(
                F::Postgresql,
                "Nobody listened there",
                "Look whether PostgreSQL runs, on that port, and listens on that address (listen_addresses).",
            ),
            blame(
                F::Network,
                "Its name could not be resolved",
                "Look for the name in the route's upstream, and for the cluster's DNS.",
            ),
            blame(
                F::Postgresql,
                "Its certificate was not believed",
                "Look for its end, its names, and for sslrootcert in the route's upstream.",
            ),
            blame(
                F::Network,
                "It could not be reached",
                "Look whether PostgreSQL runs, and for a NetworkPolicy or a firewall between the pod and it.",
            ),
        ),
        ("tls", _) => blame(
            F::Postgresql,
            "There was no secure connection",
            "Look for what it says of the certificate: its end, its names, and whether sslrootcert in the route's \
             upstream is the CA that signed it; and whether the server has ssl = on.",
        ),
        ("untrusted", _) => blame(
            F::Postgresql,
            "It did not prove to be the server that the credential is for",
            "Look whether upstream names the right server, and for require_auth and channel_binding; else something \
             stands between the two.",
        ),
        ("auth_rejected", _) => blame(
            F::Postgresql,
            "It did not accept the leased user",
            "Look whether Vault makes its users at this server (connection_url), for a line in pg_hba.conf that lets \
             them in with scram-sha-256, and whether somebody has dropped or locked the role.",
        ),
        ("refused", Some("53300")) => blame(
            F::Postgresql,
            "It had no connection left",
            "Look who has them (pg_stat_activity), and for max_connections and CONNECTION LIMIT of database and role.",
        ),
        ("refused", Some("57P03" | "57P01" | "57P02")) => blame(
            F::Postgresql,
            "It was starting or stopping",
            "Wait for it to come up; its log says what it waits for.",
        ),
        ("refused", Some("3D000")) => blame(
            F::Application,
            "It did not have the database that was asked for",
            "Look for the database in the application's URL, and in the route's upstream.",
        ),
        // Names and values that a client has sent, or the startup_role.
        ("refused", Some("22023" | "42601" | "42704")) => blame(
            F::Application,
            "It did not take a parameter that the session begins with",
            "Its words say which: look into the application's URL and its driver's options, and where it is the role, \
             for the route's startup_role.",
        ),
        ("refused", Some("28000")) => blame(
            F::Postgresql,
            "It did not let us in",
            "Look for a line in pg_hba.conf that lets leased users in from this pod, and for ssl in it.",
        ),
        ("refused", Some("42501")) => blame(
            F::Postgresql,
            "It did not allow the leased user what the session begins with",
            "Look for CONNECT on the database, and for membership in the startup_role: creation statements grant them.",
        ),
        ("refused", _) => blame(F::Postgresql, "It refused the session", "Its words say why."),
        ("session_attrs", _) => blame(
            F::Postgresql,
            "It was not the kind of server that is wanted",
            "Look which of the hosts is the primary now, and for target_session_attrs in the route's upstream.",
        ),
        _ => blame(
            F::Postgresql,
            "The login broke off",
            "PostgreSQL's log says why; where it knows nothing of it, a proxy between the two is at fault.",
        ),
    }
}

/// Whether the other side has refused what it was shown in TLS, by the name of its alert.
fn is_of_our_certificate(says: &str) -> bool {
    let alert = says.split_once("received fatal alert: ").map_or("", |(_, alert)| alert);
    // A signature that does not fit, as of another CA of the same name, is a DecryptError.
    let names = ["BadCertificate", "UnsupportedCertificate", "Certificate", "UnknownCA", "DecryptError"];
    names.iter().any(|name| alert.starts_with(name))
}

/// Why there was no connection, by the words of the operating system and of TLS.
fn unreached(says: &str, refused: Blame, name: Blame, certificate: Blame, other: Blame) -> Blame {
    let has = |words: &[&str]| words.iter().any(|word| says.contains(word));
    if has(&["onnection refused", "No such file or directory"]) {
        refused
    } else if has(&["lookup address", "dns error", "Name or service", "not known"]) {
        name
    } else if has(&["ertificate"]) {
        certificate
    } else {
        other
    }
}
