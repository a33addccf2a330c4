//! What `benches/fleet.rs` is told of an instance's life is what the chain does.

use super::super::simulation::{Request, Rules, live};
use super::*;

#[tokio::test(start_paused = true)]
async fn simulated_life_is_as_the_chains_own() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| {
            (vault.lease_ttl, vault.lease_max) = (TTL, MAX_TTL);
            (vault.token_ttl, vault.token_max) = (TTL, 86_400);
        });
    })
    .await;
    time::sleep(LENGTH).await;

    let (lease, token) = ((secs(TTL), secs(MAX_TTL)), (secs(TTL), secs(86_400)));
    let rules = Rules { lease, token, jwt: secs(86_400), renewal_needs_jwt: false };
    for (request, operation) in [
        (Request::Login, Operation::Login),
        (Request::Creds, Operation::ReadCreds),
        (Request::RenewLease, Operation::RenewLease),
        (Request::RenewToken, Operation::RenewSelf),
        (Request::Revoke, Operation::RevokeSelf),
    ] {
        let mut simulated = 0;
        for seed in 0..LIVES {
            live(&rules, Duration::ZERO, LENGTH, seed, |made, _| simulated += u64::from(made == request));
        }
        let (simulated, own) = (simulated / LIVES, rig.vault.count(operation) as u64);
        assert!(simulated.abs_diff(own) <= simulated / 5 + 2, "{operation}: {own}, simulated {simulated}");
    }
}

const TTL: u64 = 600;

const MAX_TTL: u64 = 7_200;

/// Longer than `MAX_TTL`.
const LENGTH: Duration = Duration::from_hours(4);

/// To take the mean of.
const LIVES: u64 = 50;
