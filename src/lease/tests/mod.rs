//! The chain's task over fakes, in virtual time.

mod control;
mod fakes;
mod learning;
mod life;
mod policy;
mod simulated;
mod static_role;
mod tokens;
mod trouble;

use std::sync::atomic::{AtomicU64, Ordering};

use self::fakes::{FakeUpstream, FakeVault, Fault};
use super::*;
use crate::credential::{CredentialSource, Hold, Revocation, Standing, channel};
use crate::vault::Operation;

/// A chain at work, and all that is around it.
struct Rig {
    vault: Arc<FakeVault>,
    upstream: Arc<FakeUpstream>,
    source: CredentialSource,
    metrics: Arc<Metrics>,
    /// Seconds by which the wall clock was put forward.
    wall_ahead: Arc<AtomicU64>,
    handle: Option<ChainHandle>,
    stop: CancellationToken,
    chain: JoinSet<ChainEnd>,
}

impl Rig {
    /// Starts a chain at a Vault that `set_up` has changed.
    fn start(set_up: impl FnOnce(&FakeVault, &FakeUpstream)) -> Self {
        Self::start_with(false, set_up)
    }

    /// `learns`: some sessions depend on what a revocation does.
    fn start_with(learns: bool, set_up: impl FnOnce(&FakeVault, &FakeUpstream)) -> Self {
        let (mut rig, publisher) = Self::prepare(set_up);
        let (settings, vault, metrics, clock) = rig.parts(learns);
        let chain = Chain::with_clock(settings, vault, publisher, metrics, clock);
        rig.handle = Some(chain.handle());
        rig.chain.spawn(chain.run(rig.stop.clone()));
        rig
    }

    /// The same for a static role.
    fn start_static(set_up: impl FnOnce(&FakeVault, &FakeUpstream)) -> Self {
        let (mut rig, publisher) = Self::prepare(set_up);
        let (settings, vault, metrics, clock) = rig.parts(false);
        let chain = StaticChain::with_clock(settings, vault, publisher, metrics, clock);
        rig.handle = Some(chain.handle());
        rig.chain.spawn(chain.run(rig.stop.clone()));
        rig
    }

    /// All but the chain.
    fn prepare(set_up: impl FnOnce(&FakeVault, &FakeUpstream)) -> (Self, Publisher) {
        fastrand::seed(SEED);
        let (vault, upstream) = (Arc::new(FakeVault::default()), Arc::new(FakeUpstream::default()));
        set_up(&vault, &upstream);
        let (publisher, source) = channel();
        let rig = Self {
            vault,
            upstream,
            source,
            metrics: Arc::new(Metrics::new()),
            wall_ahead: Arc::new(AtomicU64::new(0)),
            handle: None,
            stop: CancellationToken::new(),
            chain: JoinSet::new(),
        };
        (rig, publisher)
    }

    fn parts(&self, learns: bool) -> (ChainSettings<Arc<FakeUpstream>>, Arc<FakeVault>, Arc<Metrics>, Clock) {
        let settings = ChainSettings {
            vault_path: "database/creds/db-app".to_owned(),
            upstreams: watch::channel(Upstreams {
                provers: vec![Arc::new(Arc::clone(&self.upstream))],
                learner: learns.then(|| Arc::new(Arc::clone(&self.upstream))),
            })
            .1,
        };
        let clock = virtual_clock(Arc::clone(&self.wall_ahead));
        (settings, Arc::clone(&self.vault), Arc::clone(&self.metrics), clock)
    }

    /// Starts it and waits for the first credential.
    async fn serving(set_up: impl FnOnce(&FakeVault, &FakeUpstream)) -> Self {
        let rig = Self::start(set_up);
        drop(rig.hold().await);
        rig
    }

    async fn hold(&self) -> Hold {
        self.source.hold().await.unwrap()
    }

    /// The user name that a session which comes now logs in with.
    async fn user(&self) -> String {
        self.hold().await.credential().user.clone()
    }

    async fn rotate(&self, close: bool) -> Result<Rotated, NoAnswer> {
        self.handle.as_ref().unwrap().rotate(close).await
    }

    async fn status(&self) -> ChainStatus {
        self.handle.as_ref().unwrap().status().await.unwrap()
    }

    async fn end(mut self) -> ChainEnd {
        self.stop.cancel();
        self.chain.join_next().await.unwrap().unwrap()
    }

    fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.encode().unwrap();
        let value = text.lines().find_map(|of| of.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

/// Follows tokio's paused clock.
fn virtual_clock(wall_ahead: Arc<AtomicU64>) -> Clock {
    let start = Instant::now();
    Arc::new(move || Now {
        boot: secs(1_000) + start.elapsed(),
        wall: fakes::WALL_START + start.elapsed() + secs(wall_ahead.load(Ordering::Relaxed)),
    })
}

/// Of the dice of every test.
const SEED: u64 = 20;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
