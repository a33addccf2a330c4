//! The life of a lease as an operator would try it: the program, an OpenBao, a PostgreSQL, and what goes wrong with
//! them. Tests are named after the scenario or the case that they play.

mod crash;
mod drain;
mod engine;
mod goodbye;
mod idle;
mod lease_end;
mod login;
mod outage;
mod owner;
mod quota;
mod reissue;
mod renewal;
mod revoked;
mod routes;
mod states;
mod static_role;
mod tokens;
mod vault;
mod walsender;

use std::time::Duration;

use crate::support::audit::Request;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};

/// One `vault_role`, `db-app`.
fn of(vault_role: VaultRole) -> WorldOptions {
    WorldOptions { vault_roles: vec![vault_role], ..WorldOptions::default() }
}

/// Scenario 27: with a policy of the exact path and the default policy, pglease asks for nothing that it may not have.
async fn assert_nothing_was_forbidden(world: &World<'_>, pglease: &Pglease) {
    let samples = pglease.metrics().await.into_iter();
    // Of a token that is gone: the first try was answered after its 2 s were over, on a busy machine.
    let refused = samples.filter(|(sample, _)| {
        let is_of_vault =
            sample.starts_with("pglease_vault_requests_total{") && sample.contains("code=\"403\"");
        is_of_vault && !sample.contains("op=\"revoke_self\"")
    });
    let refused: f64 = refused.map(|(_, value)| value).sum();
    let forbidden: Vec<_> = world.requests().into_iter().filter(|request| request.is_forbidden).collect();
    assert!(refused == 0.0 && forbidden.is_empty(), "{refused} {forbidden:?}");
}

/// The requests of this kind that OpenBao has granted the world's pods.
fn granted(world: &World<'_>, kind: impl Fn(&Request) -> bool) -> Vec<Request> {
    let requests = world.requests().into_iter();
    requests.filter(|request| request.was_granted() && kind(request)).collect()
}

/// From each to the next.
fn gaps(requests: &[Request]) -> Vec<Duration> {
    requests.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at)).collect()
}
