//! The injector's certificate over installs, upgrades, rollbacks and renewals, while pods are made all the time. Case
//! C30.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::chart::{Release, succeed};
use crate::patience::{PATIENCE, until};
use crate::site::{create_namespace, path_in};
use crate::support::pki::{Authority, Issued};

#[tokio::test]
async fn no_pod_is_refused_over_upgrade_scaling_and_rollback() {
    let release = Release::install(&["replicas=1"]).await;
    let stream = Stream::start(&release).await;
    let secret = release.api.get(&secret_path(&release)).await;
    let bundle = bundle_of(&release).await;

    release.helm("upgrade", &["replicas=1"]).await;
    release.until_rolled_out(1).await;
    release.helm("upgrade", &["replicas=2"]).await;
    release.until_rolled_out(2).await;
    // New pods in place of the old ones.
    release.helm("upgrade", &["replicas=2", "log.level=debug"]).await;
    release.until_rolled_out(2).await;
    stream.go_on().await;
    let rollback = ["rollback", "pglease", "1", "--namespace", &release.namespace];
    succeed(&release.control_plane.helm(&rollback).await);
    release.until_rolled_out(1).await;
    stream.go_on().await;

    assert_eq!(release.api.get(&secret_path(&release)).await["data"], secret["data"]);
    assert_eq!(bundle_of(&release).await, bundle);
    stream.end().await;
}

#[tokio::test]
async fn replaced_certificate_is_shown_within_seconds_and_a_broken_pair_never() {
    let ca = Authority::create();
    let release = Release::prepare().await;
    let names = [format!("{}-injector.{}.svc", release.full_name(), release.namespace)];
    let issue = |life: u64| ca.issue_living(&[&names[0]], Duration::from_secs(life));
    let first = issue(3600);
    create_secret(&release, &first).await;
    let authority = format!("certificate.existing.ca={}", ca.pem().replace(',', "\\,"));
    let values = ["certificate.source=existing", "certificate.existing.secretName=cert", &authority];
    release.helm("install", &values).await;
    release.until_it_injects().await;
    let stream = Stream::start(&release).await;
    until_shown(&release, &ca, &names[0], &first).await;

    // A key of another certificate: what was read before stays.
    let short = issue(20);
    write_secret(&release, &short.certificate, &first.key).await;
    for name in release.injectors().await {
        let injector = release.node.container(&name, "injector").await;
        let reported = |lines: &[String]| {
            lines.iter().any(|line| line.contains("injector.certificate_reload_failed")).then_some(())
        };
        injector.process.lines().wait_for(PATIENCE, reported).await.expect("a broken pair is reported");
    }
    stream.go_on().await;
    until_shown(&release, &ca, &names[0], &first).await;

    // One that ends in 20 s, and in time another.
    let written = time::Instant::now();
    write_secret(&release, &short.certificate, &short.key).await;
    until_shown(&release, &ca, &names[0], &short).await;
    assert!(written.elapsed() < Duration::from_secs(10), "{:?}", written.elapsed());
    let left = seconds_left(&release).await;
    assert!((-1.0..=20.0).contains(&left), "{left}");
    let next = issue(3600);
    write_secret(&release, &next.certificate, &next.key).await;
    until_shown(&release, &ca, &names[0], &next).await;
    time::sleep_until(written + Duration::from_secs(22)).await;
    stream.go_on().await;
    assert!(seconds_left(&release).await > 3000.0);
    stream.end().await;
}

#[tokio::test]
async fn certificate_near_its_end_is_made_anew_by_the_cron_job() {
    let release = Release::install(&[]).await;
    let stream = Stream::start(&release).await;
    let path = secret_path(&release);
    let before = release.api.get(&path).await;
    let run = async |name: &str| {
        let cron = format!("cronjob/{}-injector-certificate", release.full_name());
        let arguments = ["create", "job", name, "--from", &cron, "--namespace", &release.namespace];
        succeed(&release.control_plane.kubectl(&arguments, "").await);
        let job = path_in(&release.namespace, &format!("batch/jobs/{name}"));
        until(async || release.api.get(&job).await["status"]["succeeded"] == 1).await;
    };
    run("nothing-to-do").await;
    assert_eq!(release.api.get(&path).await["data"], before["data"]);

    // Of a CA that the API server does not know: as after the Secret was lost.
    release.api.delete(&path).await.object();
    run("anew").await;
    let after = release.api.get(&path).await;
    assert_ne!(after["data"]["tls.crt"], before["data"]["tls.crt"]);
    stream.go_on().await;
    let authority = STANDARD.decode(after["data"]["ca.crt"].as_str().unwrap()).unwrap();
    let bundle = STANDARD.decode(bundle_of(&release).await).unwrap();
    let has = |wanted: &[u8]| bundle.windows(wanted.len()).any(|part| part == wanted);
    assert!(has(authority.trim_ascii()), "{}", String::from_utf8_lossy(&bundle));
    stream.end().await;
}

/// A labelled pod each 200 ms.
struct Stream {
    made: tokio::sync::watch::Receiver<usize>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Stream {
    async fn start(release: &Release) -> Self {
        let namespace = create_namespace(&release.api).await;
        release.adopt(&namespace).await;
        until(async || crate::chart::is_injecting(&release.api, &namespace).await).await;
        let (sender, made) = tokio::sync::watch::channel(0);
        let stop = CancellationToken::new();
        let (api, stopped) = (release.api.clone(), stop.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut ticks = time::interval(Duration::from_millis(200));
            ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
            while !stopped.is_cancelled() {
                ticks.tick().await;
                let reply = api.try_create(&path_in(&namespace, "pods"), &crate::chart::probe()).await;
                assert!(reply.is_ok(), "after {} pods: {}", *sender.borrow(), reply.message());
                assert_eq!(reply.body["metadata"]["annotations"]["pglease.dev/status"], "injected");
                sender.send_modify(|made| *made += 1);
            }
        });
        Self { made, stop, tasks }
    }

    /// Waits until some more have been made.
    async fn go_on(&self) {
        let mut made = self.made.clone();
        let enough = *made.borrow() + 10;
        let waited = time::timeout(PATIENCE, made.wait_for(|made| *made >= enough)).await;
        waited.expect("pods are made").expect("each pod is made");
    }

    /// Fails the test where one was refused.
    async fn end(mut self) {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().expect("no pod is refused");
    }
}

fn secret_path(release: &Release) -> String {
    path_in(&release.namespace, &format!("secrets/{}-injector-tls", release.full_name()))
}

async fn bundle_of(release: &Release) -> String {
    let webhook = release.api.get(&release.webhook()).await;
    webhook["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap().to_owned()
}

async fn create_secret(release: &Release, issued: &Issued) {
    let mut secret = json!({ "metadata": { "name": "cert" }, "type": "kubernetes.io/tls" });
    secret["data"] = data(&issued.certificate, &issued.key);
    release.api.create(&path_in(&release.namespace, "secrets"), &secret).await;
}

async fn write_secret(release: &Release, certificate: &str, key: &str) {
    let path = path_in(&release.namespace, "secrets/cert");
    release.api.merge(&path, &json!({ "data": data(certificate, key) })).await.object();
}

fn data(certificate: &str, key: &str) -> Value {
    json!({ "tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key) })
}

/// Waits until every injector of the release shows this certificate.
async fn until_shown(release: &Release, ca: &Authority, name: &str, issued: &Issued) {
    let wanted = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    for pod in release.injectors().await {
        let injector = release.node.container(&pod, "injector").await;
        let address = injector.address(&json!("https")).unwrap();
        until(async || shown(address, ca, name).await == wanted).await;
    }
}

async fn shown(address: std::net::SocketAddr, ca: &Authority, name: &str) -> CertificateDer<'static> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = connector.connect(name, tcp).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// What the metrics of one of the injectors say of the certificate's end.
async fn seconds_left(release: &Release) -> f64 {
    let pod = release.injectors().await.remove(0);
    let injector = release.node.container(&pod, "injector").await;
    let url = format!("http://{}/metrics", injector.address(&json!("http")).unwrap());
    let text = crate::support::http_client().get(url).send().await.unwrap().text().await.unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("pglease_injector_certificate_expiry_timestamp_seconds "));
    let end: f64 = line.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    end - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
