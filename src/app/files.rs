//! Credential files: what their chains must know of them, and the tasks that keep them.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::AppError;
use super::chains::Chains;
use crate::config::FileConfig;
use crate::file::{CredentialFile, FileStatus};
use crate::telemetry::Metrics;
use crate::upstream::{Probe, Upstream};

/// A file, as its chain knows it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) vault_path: String,
    pub(super) optional: bool,
    /// Where its credential is tried, if it says.
    pub(super) probe: Option<Arc<Probe>>,
}

/// All files, before any is written.
#[derive(Debug)]
pub(super) struct CredentialFiles(Vec<(Wanted, CredentialFile)>);

impl CredentialFiles {
    /// Blocks on their templates and certificates.
    pub(super) fn load(files: &[FileConfig], metrics: &Arc<Metrics>) -> Result<Self, AppError> {
        let load = |config: &FileConfig| {
            let wanted = Wanted {
                vault_path: config.vault_path.clone(),
                optional: config.optional,
                probe: probe(config, metrics)?.map(Arc::new),
            };
            let file = CredentialFile::new(config, metrics).map_err(AppError::File)?;
            Ok((wanted, file))
        };
        files.iter().map(load).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        self.0.iter().map(|(wanted, _)| wanted.clone()).collect()
    }

    /// How they stand.
    pub(super) fn status(&self) -> Vec<watch::Receiver<FileStatus>> {
        self.0.iter().map(|(_, file)| file.status()).collect()
    }

    /// Whether those are there that `/startup` waits for.
    pub(super) fn awaited(&self) -> Vec<watch::Receiver<bool>> {
        self.0.iter().filter(|(wanted, _)| !wanted.optional).map(|(_, file)| file.there()).collect()
    }

    /// Removes what a process before this one has left. Blocks on the disk.
    pub(super) fn clear(&mut self) -> Result<(), AppError> {
        self.0.iter_mut().try_for_each(|(_, file)| file.clear().map_err(AppError::File))
    }

    /// Has them kept.
    pub(super) fn start(self, chains: &Chains) -> Keepers {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for (wanted, file) in self.0 {
            if let Some(source) = chains.source(&wanted.vault_path) {
                tasks.spawn(file.run(source, stop.clone()));
            }
        }
        Keepers { stop, tasks }
    }
}

fn probe(config: &FileConfig, metrics: &Arc<Metrics>) -> Result<Option<Probe>, AppError> {
    let Some(upstream) = &config.upstream else { return Ok(None) };
    let loaded = Upstream::load(upstream)
        .map_err(|source| AppError::Upstream { vault_path: config.vault_path.clone(), source })?;
    let database = upstream.database.as_deref().unwrap_or("postgres");
    Ok(Some(Probe::new(Arc::new(loaded.counting(metrics)), database)))
}

/// The tasks of the files.
#[derive(Debug)]
pub(super) struct Keepers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Keepers {
    /// Removes them, which their credentials must be there for.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            report_fault(ended);
        }
    }

    /// Tells of bugs, while there are tasks. Cancel safe.
    pub(super) async fn watch(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            report_fault(ended);
        }
    }
}

/// Before it is stopped a task ends in a panic only.
fn report_fault(ended: Result<(), JoinError>) {
    if let Err(fault) = ended {
        error!(event = "process.fault", error = %fault, "a bug of pglease ended the task of a file, which stays as it is");
    }
}
