//! When the certificates end that pglease shows: their files are read once a minute, and at once after a reload.
//!
//! Part of the control thread, to the end of the process; what blocks on a disk is done on a thread that may.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task;
use tokio::time;

use crate::config::{Config, SslMode};
use crate::session::Shared;
use crate::telemetry::{CertificateLabels, Metrics};
use crate::tls;

type Ends = BTreeMap<CertificateLabels, u64>;

/// Has metrics and status tell of those that the settings in effect name.
pub(super) async fn watch_ends(
    mut in_effect: watch::Receiver<Arc<Config>>,
    shared: &Shared,
    metrics: &Metrics,
) -> Infallible {
    loop {
        // Who renews it reads in the log what came of it, also where no client comes.
        if let Some(tls) = &shared.rules().tls {
            tls.look().await;
        }
        let config = Arc::clone(&in_effect.borrow_and_update());
        let before = metrics.certificates.known();
        // Only a bug would have it end without them.
        if let Ok(ends) = task::spawn_blocking(move || ends(&config, &before)).await {
            metrics.certificates.set(ends);
        }
        tokio::select! {
            () = time::sleep(INTERVAL) => {}
            Ok(()) = in_effect.changed() => {}
        }
    }
}

/// Of files that are of no use now what was known before: the certificate read then is still shown.
fn ends(config: &Config, before: &Ends) -> Ends {
    let end = |(setting, cert_file, key_file): (&'static str, &Path, &Path)| {
        let labels = CertificateLabels { setting, file: cert_file.display().to_string() };
        let read = tls::end_of_pair(cert_file, key_file).map(|end| end.as_secs());
        let end = read.or_else(|| before.get(&labels).copied())?;
        Some((labels, end))
    };
    named(config).into_iter().filter_map(end).collect()
}

/// Setting, file and key of each.
fn named(config: &Config) -> Vec<(&'static str, &Path, &Path)> {
    let of_listen = config.listen.tls.iter();
    let of_listen =
        of_listen.map(|pair| ("listen.tls_cert_file", pair.cert_file.as_path(), pair.key_file.as_path()));
    let of_vault = config.vault.tls.client.iter().filter(|_| config.vault.address.starts_with("https://"));
    let of_vault =
        of_vault.map(|pair| ("vault.client_cert_file", pair.cert_file.as_path(), pair.key_file.as_path()));
    let of_routes = config.routes.iter().map(|route| &route.upstream);
    let upstreams = of_routes.chain(config.files.iter().filter_map(|file| file.upstream.as_ref()));
    let of_upstreams = upstreams.filter(|upstream| upstream.ssl_mode != SslMode::Disable);
    let of_upstreams = of_upstreams.filter_map(|upstream| upstream.ssl.client.as_ref());
    let of_upstreams =
        of_upstreams.map(|pair| ("sslcert", pair.cert_file.as_path(), pair.key_file.as_path()));
    of_listen.chain(of_vault).chain(of_upstreams).collect()
}

/// Between two looks.
const INTERVAL: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::config::{self, ClientCert, ServerCert};
    use crate::drain::Drain;
    use crate::session::auth::Auth;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/server").join(name)
    }

    /// One in each place that has room for one, the same for two upstreams.
    fn config() -> Config {
        let mut config = config::tests::example();
        let client = || Some(ClientCert { cert_file: fixture("p384.pem"), key_file: fixture("p384.key") });
        config.listen.tls = Some(ServerCert { cert_file: fixture("rsa.pem"), key_file: fixture("rsa.key") });
        config.vault.tls.client = client();
        config.routes[0].upstream.ssl.client = client();
        let mut other = config.routes[0].clone();
        other.database = Some("other".to_owned());
        config.routes.push(other);
        config
    }

    fn settings(ends: &Ends) -> Vec<&'static str> {
        ends.keys().map(|labels| labels.setting).collect()
    }

    #[test]
    fn each_certificate_that_is_shown_is_told_of_once() {
        let mut config = config();
        let ends = ends(&config, &Ends::new());
        assert_eq!(settings(&ends), ["listen.tls_cert_file", "sslcert", "vault.client_cert_file"]);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(ends.values().all(|end| *end > now), "{ends:?}");

        // Where there is no TLS none is shown.
        config.vault.address = "http://127.0.0.1:8200".to_owned();
        config.routes.iter_mut().for_each(|route| route.upstream.ssl_mode = SslMode::Disable);
        config.listen.tls = None;
        assert_eq!(named(&config), []);
    }

    #[test]
    fn files_that_are_of_no_use_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let files = ServerCert { cert_file: folder.path().join("cert"), key_file: folder.path().join("key") };
        let mut config = config::tests::example();
        config.listen.tls = Some(files.clone());
        assert_eq!(ends(&config, &Ends::new()), Ends::new());
        fs::copy(fixture("rsa.pem"), &files.cert_file).unwrap();
        fs::copy(fixture("rsa.key"), &files.key_file).unwrap();
        let known = ends(&config, &Ends::new());
        assert_eq!(known.len(), 1);
        // Half of a pair.
        fs::copy(fixture("p384.pem"), &files.cert_file).unwrap();
        assert_eq!(ends(&config, &known), known);
        fs::write(&files.cert_file, "").unwrap();
        assert_eq!(ends(&config, &known), known);
    }

    #[tokio::test(start_paused = true)]
    async fn metric_follows_the_settings_in_effect() {
        let metrics = Arc::new(Metrics::new());
        let (auth, phase) = (Auth::Trust, Drain::default().subscribe());
        let shared = Shared::new(Vec::new(), auth, Arc::clone(&metrics), phase, Duration::ZERO, 1);
        let (settings, in_effect) = watch::channel(Arc::new(config()));
        let told = || {
            let all = metrics.encode().unwrap();
            let name = "pglease_certificate_expiry_timestamp_seconds{";
            let lines = all.lines().filter_map(|line| line.strip_prefix(name)?.split(',').next());
            lines.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let all = ["listen.tls_cert_file", "sslcert", "vault.client_cert_file"];
        let changes = async {
            // Files are read on another thread, which no clock that is paused waits for.
            while told().len() < all.len() {
                task::yield_now().await;
            }
            let of = |settings: &[&str]| settings.iter().map(|of| format!("setting=\"{of}\"")).collect();
            assert_eq!(told(), of(&all));
            settings.send_modify(|config| Arc::make_mut(config).listen.tls = None);
            while told().len() == all.len() {
                task::yield_now().await;
            }
            assert_eq!(told(), of(&all[1..]));
        };
        tokio::select! {
            never = watch_ends(in_effect, &shared, &metrics) => match never {},
            () = changes => {}
        }
    }
}
