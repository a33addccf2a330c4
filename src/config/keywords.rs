//! libpq's keywords by name, and what each does in an `upstream`.
//!
//! PostgreSQL manual, "Parameter Key Words".

/// One of libpq's keywords.
#[derive(Debug)]
pub(crate) struct Keyword {
    pub(crate) name: &'static str,
    pub(crate) meaning: Use,
    /// What is done anyway, and thus may be written although the keyword does nothing.
    pub(crate) default: Option<&'static str>,
}

/// What a keyword does in `upstream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Built,
    /// Up to the client, whose startup parameters go on.
    Client,
    /// Nothing, ever.
    None,
    /// Belongs to the leased credential, or is a secret.
    Secret,
}

const fn keyword(name: &'static str, meaning: Use) -> Keyword {
    Keyword { name, meaning, default: None }
}

const fn with_default(name: &'static str, meaning: Use, default: &'static str) -> Keyword {
    Keyword { name, meaning, default: Some(default) }
}

/// All of libpq 18's.
pub(crate) const KEYWORDS: &[Keyword] = &[
    keyword("host", Use::Built),
    keyword("hostaddr", Use::Built),
    keyword("port", Use::Built),
    keyword("dbname", Use::Built),
    keyword("sslmode", Use::Built),
    keyword("sslrootcert", Use::Built),
    keyword("sslnegotiation", Use::Built),
    keyword("sslcert", Use::Built),
    keyword("sslkey", Use::Built),
    keyword("sslcertmode", Use::Built),
    keyword("sslcrl", Use::Built),
    keyword("sslcrldir", Use::Built),
    keyword("sslsni", Use::Built),
    keyword("ssl_min_protocol_version", Use::Built),
    keyword("ssl_max_protocol_version", Use::Built),
    keyword("channel_binding", Use::Built),
    keyword("require_auth", Use::Built),
    keyword("min_protocol_version", Use::Built),
    keyword("max_protocol_version", Use::Built),
    keyword("connect_timeout", Use::Built),
    keyword("target_session_attrs", Use::Built),
    keyword("load_balance_hosts", Use::Built),
    keyword("keepalives", Use::Built),
    keyword("keepalives_idle", Use::Built),
    keyword("keepalives_interval", Use::Built),
    keyword("keepalives_count", Use::Built),
    keyword("tcp_user_timeout", Use::Built),
    keyword("application_name", Use::Client),
    keyword("fallback_application_name", Use::Client),
    keyword("client_encoding", Use::Client),
    keyword("options", Use::Client),
    keyword("replication", Use::Client),
    with_default("gssencmode", Use::None, "disable"),
    keyword("gssdelegation", Use::None),
    keyword("gsslib", Use::None),
    keyword("krbsrvname", Use::None),
    keyword("requirepeer", Use::None),
    keyword("service", Use::None),
    keyword("servicefile", Use::None),
    with_default("sslcompression", Use::None, "0"),
    keyword("sslkeylogfile", Use::None),
    keyword("oauth_issuer", Use::None),
    keyword("oauth_client_id", Use::None),
    keyword("oauth_scope", Use::None),
    keyword("user", Use::Secret),
    keyword("password", Use::Secret),
    keyword("passfile", Use::Secret),
    keyword("sslpassword", Use::Secret),
    keyword("scram_client_key", Use::Secret),
    keyword("scram_server_key", Use::Secret),
    keyword("oauth_client_secret", Use::Secret),
];
