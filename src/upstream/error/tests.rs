use super::*;

fn refused(body: &[u8]) -> UpstreamError {
    refused_at(Stage::Asked, body)
}

fn refused_at(stage: Stage, body: &[u8]) -> UpstreamError {
    let response = ErrorResponse::parse(body);
    UpstreamError::login("db".to_owned(), LoginError::Refused { response, stage })
}

#[test]
fn only_28p01_and_28000_are_against_the_credential_where_it_was_judged() {
    for code in ["28P01", "28000"] {
        let body = format!("SFATAL\0C{code}\0Mno\0\0");
        let error = refused_at(Stage::Begun, body.as_bytes());
        assert_eq!(error.on_credential(), OnCredential::Doubtful);
        assert_eq!(error.client_error(), ClientError::Verbatim(ErrorResponse::parse(body.as_bytes())));
        let error = refused(format!("SFATAL\0C{code}\0Mno\0\0").as_bytes());
        assert_eq!((error.reason(), error.sqlstate().unwrap().to_string()), ("auth_rejected", code.into()));
        let told = ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "database credential is being replaced");
        assert_eq!(error.client_error(), told);
    }
    for body in [&b"C53300\0Mfull\0\0"[..], b"C57P03\0\0", b"C42501\0\0", b"Mno code\0\0", b""] {
        let error = refused(body);
        assert_eq!(error.reason(), "refused");
        assert_eq!(error.client_error(), ClientError::Verbatim(ErrorResponse::parse(body)));
    }
}

#[test]
fn client_hears_of_hosts_and_nothing_of_foreign_bytes() {
    let address = || "db.internal (10.0.0.1:5432)".to_owned();
    let io = || io::Error::other("secret detail");
    for (error, told) in [
        (UpstreamError::Resolve { host: address(), source: io() }, "name not resolved"),
        (
            UpstreamError::Resolve { host: address(), source: io::ErrorKind::TimedOut.into() },
            "name not resolved in time",
        ),
        (UpstreamError::Connect { address: address(), source: io() }, "other error"),
        (
            UpstreamError::TimedOut { address: address(), limit: Duration::from_secs(1) },
            "no answer within 1s",
        ),
        (
            UpstreamError::Tls { address: address(), source: NegotiationError::Stranger { byte: b'H' } },
            "what answers the request for TLS is not PostgreSQL",
        ),
        (
            UpstreamError::Tls {
                address: address(),
                source: NegotiationError::Handshake { source: io(), is_direct: false },
            },
            "TLS handshake with upstream failed",
        ),
        (
            UpstreamError::Login { address: address(), source: LoginError::NotProven },
            "not trusted, as it did not prove that it knows the credential",
        ),
        (
            UpstreamError::Login { address: address(), source: LoginError::Closed },
            "connection lost during login",
        ),
        (
            UpstreamError::Login { address: address(), source: LoginError::Unexpected { tag: b'H' } },
            "not the protocol of PostgreSQL",
        ),
        (UpstreamError::Unfit { address: address(), is: Unfit::ReadOnly }, "session is read-only"),
    ] {
        let ClientError::Own { code, message, detail, .. } = error.client_error() else { panic!("{error}") };
        assert_eq!(code, SqlState::UNABLE_TO_CONNECT);
        assert!(!message.contains("10.0.0.1") && !message.contains("secret"), "{message}");
        assert_eq!(detail.unwrap(), format!("{}: {told}", address()));
        assert!(error.to_string().contains("db.internal"), "{error}");
    }
}

#[test]
fn client_hears_the_cause_of_each_fault_of_a_login_and_not_another_ones() {
    let allowed = RequireAuth::default();
    let unproven = "not trusted, as it did not prove that it knows the credential";
    let protocol = "not the protocol of PostgreSQL";
    for (source, told) in [
        (
            LoginError::Method { method: "GSSAPI", allowed },
            "asks for GSSAPI, which require_auth does not allow",
        ),
        (LoginError::NothingAsked { allowed }, "asks for nothing, which require_auth does not allow"),
        (
            LoginError::NotBound { asked: "an MD5 password" },
            "asks for an MD5 password, which cannot be bound as channel_binding=require wants",
        ),
        (
            LoginError::Scram(ScramError::PlusNotOffered),
            "offers no channel binding, which channel_binding=require wants",
        ),
        (
            LoginError::Scram(ScramError::NoMechanism),
            "offers no way of SCRAM that can be gone with channel_binding as it is",
        ),
        (
            LoginError::Scram(ScramError::Iterations { asked: "9".to_owned() }),
            "asks for a number of rounds of key derivation that is out of bounds",
        ),
        (LoginError::InClear, "asks for the password in clear, which goes over verified TLS only"),
        (LoginError::OutOfOrder { name: "SASLFinal" }, unproven),
        (LoginError::NotProven, unproven),
        (LoginError::Scram(ScramError::NoSalt), unproven),
        (LoginError::Closed, "connection lost during login"),
        (LoginError::Unexpected { tag: b'H' }, protocol),
        (LoginError::Malformed { name: "BackendKeyData" }, protocol),
        (LoginError::UserName, "credential has a zero byte, which none can have"),
    ] {
        let error = UpstreamError::Login { address: "db".to_owned(), source };
        let ClientError::Own { detail, .. } = error.client_error() else { panic!("{error}") };
        assert_eq!(detail.unwrap(), format!("db: {told}"));
    }
}

#[test]
fn several_hosts_are_told_one_by_one_and_counted_by_what_tells_most() {
    let io = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let away = || UpstreamError::Connect { address: "a:1".to_owned(), source: io() };
    let unfit = || UpstreamError::Unfit { address: "b:1".to_owned(), is: Unfit::Standby };
    let starting = || refused(b"SFATAL\0C57P03\0Mstarting\0\0");
    let rejected = || refused(b"SFATAL\0C28P01\0Mno\0\0");
    let silent = || UpstreamError::TimedOut { address: "c:1".to_owned(), limit: Duration::from_secs(2) };
    let wanted = TargetSessionAttrs::Primary;
    for (tried, reason, told) in [
        (
            vec![rejected(), silent()],
            "auth_rejected",
            "08001 no upstream server that could be asked accepts the database credential \
             (db: credential not accepted, c:1: no answer within 2s)",
        ),
        (
            vec![away(), unfit(), away()],
            "session_attrs",
            "08001 no upstream server for target_session_attrs=primary \
             (a:1: connection refused, b:1: server is in hot standby mode, a:1: connection refused)",
        ),
        (vec![away(), starting()], "refused", "57P03 starting (a:1: connection refused, db: 57P03 starting)"),
        (
            vec![silent(), away()],
            "timeout",
            "08001 upstream server did not answer in time (c:1: no answer within 2s, a:1: connection refused)",
        ),
        (
            vec![away(), away()],
            "connect",
            "08001 upstream server is not reachable (a:1: connection refused, a:1: connection refused)",
        ),
        (
            vec![rejected(), unfit()],
            "session_attrs",
            "08001 no upstream server for target_session_attrs=primary \
             (db: credential not accepted, b:1: server is in hot standby mode)",
        ),
    ] {
        let error =
            UpstreamError::NoHost(Box::new(NoHost { wanted, tried, credential: OnCredential::Nothing }));
        assert_eq!(error.reason(), reason);
        let ClientError::Own { code, message, detail, .. } = error.client_error() else { panic!("{error}") };
        assert_eq!(format!("{code} {message} ({})", detail.unwrap().replace('\n', ", ")), told);
    }
    let many = NoHost { wanted, tried: (0..20).map(|_| away()).collect(), credential: OnCredential::Nothing };
    assert!(many.told().ends_with("a:1: connection refused\nand 4 more"), "{}", many.told());
}
