//! What must hold for whatever an upstream says in a login; see `crate::fuzz`.

use std::sync::Arc;

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::Semaphore;

use crate::config::RequireAuth;
use crate::credential::{Credential, DerivedKeys};
use crate::ids::GenerationId;
use crate::wire::negotiation::Versions;
use crate::wire::scram::Binding;
use crate::wire::startup::{NEWEST_PROTOCOL, PROTOCOL_3_0, ProtocolVersion, StartupParameters};

use super::login::{self, Terms};

/// A login at somebody who says `said` whatever he hears: he is believed only where nothing had to be proven, is told
/// the password only where that was allowed, and makes us keep no more than he has said.
pub(crate) async fn fuzz_login(control: u8, binding: Binding, said: &[u8]) {
    let has = |bit: u8| control & bit != 0;
    let require_auth = RequireAuth { scram: true, none: has(1), md5: has(2), password: has(4) };
    let least = if has(8) { NEWEST_PROTOCOL } else { ProtocolVersion(PROTOCOL_3_0) };
    let turns = Arc::new(Semaphore::new(1));
    let must_bind = matches!(binding, Binding::Required(_));
    let versions = Versions { least, most: NEWEST_PROTOCOL };
    let terms = Terms { binding, require_auth, is_verified: has(16), versions, turns: &turns };
    let credential = Credential {
        user: "v-db-app".to_owned(),
        password: SecretString::from(PASSWORD),
        lease: None,
        generation: GenerationId(1),
        keys: DerivedKeys::default(),
        granted: crate::credential::Granted::default(),
    };

    let (mut ours, mut theirs) = duplex(said.len().max(64 * 1024));
    // Whatever fits; the rest is as if the connection had ended.
    let _ = theirs.write_all(said).await;
    let _ = theirs.shutdown().await;
    let outcome = login::log_in(&mut ours, &credential, &StartupParameters::default(), &terms).await;
    drop(ours);
    let mut told = Vec::new();
    let _ = theirs.read_to_end(&mut told).await;

    let in_clear = told.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes());
    assert!(!in_clear || (require_auth.password && terms.is_verified && !must_bind), "password told");
    if let Ok(greeting) = outcome {
        let unproven = require_auth.none || require_auth.md5 || in_clear;
        assert!(unproven && !must_bind, "believed without proof");
        assert!(greeting.before_key.len() + greeting.after_key.len() <= said.len());
    }
}

const PASSWORD: &str = "leased-password-7";
