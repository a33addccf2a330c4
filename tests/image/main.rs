//! The content of the image, assembled as its Dockerfile does and run with nothing else: `make test-image`, or
//! `cargo test --test image`.
//!
//! The program is built with the image's linkage and the profile of tests, which takes minutes the first time. What is
//! run in an empty root needs root, and is skipped by name without.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the other tests use other parts of it")]
mod support;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use support::PATIENCE;
use support::dns::NameServer;
use support::pglease::Pglease;
use support::process::copy_program;
use support::say_skipped;
use support::world::{World, WorldOptions};

/// What is in the image, by its path.
const CONTENT: [&str; 3] =
    ["etc/nsswitch.conf", "etc/ssl/certs/ca-certificates.crt", "usr/local/bin/pglease"];

const PROGRAM: &str = "/usr/local/bin/pglease";

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The image's content, assembled once.
static CONTENT_OF_IMAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = Path::new(REPOSITORY).join("target/image");
    let content = target.join("content");
    if content.exists() {
        fs::remove_dir_all(&content).unwrap();
    }
    let status = Command::new(format!("{REPOSITORY}/deploy/image.sh"))
        .arg(&content)
        .arg("dev")
        .env("CARGO_TARGET_DIR", &target)
        .env("PGLEASE_BUILD_COMMIT", COMMIT)
        .status()
        .unwrap();
    assert!(status.success(), "deploy/image.sh: {status}");
    content
});

/// What it is told that it is built from.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A copy of it, as a container's root, with what Kubernetes and every runtime (OCI, "Default Devices") put there, and
/// no `/proc`.
fn root(nameserver: &str, hosts: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let devices = root.path().join("dev");
    fs::create_dir(&devices).unwrap();
    for (name, minor) in [("null", 3), ("random", 8), ("urandom", 9)] {
        let device = makedev(1, minor);
        mknodat(CWD, devices.join(name), FileType::CharacterDevice, Mode::from(0o666), device).unwrap();
        fs::set_permissions(devices.join(name), Permissions::from_mode(0o666)).unwrap();
    }
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    for path in CONTENT {
        let (from, to) = (CONTENT_OF_IMAGE.join(path), root.path().join(path));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        copy_program(&from, &to);
    }
    let resolv = format!(
        "nameserver {nameserver}\nsearch web.svc.cluster.local svc.cluster.local\noptions ndots:5 timeout:1\n"
    );
    fs::write(root.path().join("etc/resolv.conf"), resolv).unwrap();
    fs::write(root.path().join("etc/hosts"), format!("127.0.0.1 localhost\n{hosts}")).unwrap();
    root
}

fn is_root(test: &str) -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        say_skipped(test, "an empty root directory needs root");
    }
    is_root
}

/// Runs pglease there to its end, as the image's user.
fn run(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("/usr/sbin/chroot");
    command.args(["--userspec=65532:65532"]).arg(root).arg(PROGRAM).args(arguments);
    command.output().unwrap()
}

fn files_under(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_under(&path) } else { [path].into() }).collect()
}

#[test]
fn image_is_one_program_and_two_files() {
    let content = &*CONTENT_OF_IMAGE;
    let files = files_under(content);
    assert_eq!(files, CONTENT.map(|path| content.join(path)).into());

    let program = fs::read(content.join(&PROGRAM[1..])).unwrap();
    // ELF: no program header of type PT_INTERP, 3, so no loader; a file of type ET_DYN, 3, so at any address.
    assert_eq!((&program[..4], program[16]), (&b"\x7fELF"[..], 3));
    let word = |at: usize| usize::from(u16::from_le_bytes([program[at], program[at + 1]]));
    let headers = (0..word(56)).map(|index| 64 + index * word(54));
    assert!(headers.clone().count() > 3 && headers.clone().all(|at| program[at] != 3), "not static");
}

#[test]
fn dockerfile_adds_nothing_to_what_the_script_assembles() {
    let dockerfile = fs::read_to_string(format!("{REPOSITORY}/deploy/Dockerfile")).unwrap();
    let (build, image) = dockerfile.split_once("FROM scratch\n").unwrap();
    assert!(build.contains("ARG PGLEASE_BUILD_COMMIT\nRUN deploy/image.sh /image\n"));
    let entrypoint = format!("ENTRYPOINT [\"{PROGRAM}\"]");
    let lines = ["COPY --from=build /image/ /", "USER 65532:65532", &entrypoint, "CMD [\"proxy\"]"];
    assert_eq!(image.lines().collect::<Vec<_>>(), lines);

    // The toolchain is the one that the crate asks for.
    let manifest = fs::read_to_string(format!("{REPOSITORY}/Cargo.toml")).unwrap();
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(build.contains(&format!("FROM rust:{version}-")), "not Rust {version}");
}

#[test]
fn program_runs_in_an_empty_root() {
    if !is_root("program_runs_in_an_empty_root") {
        return;
    }
    let root = root("127.0.0.1", "");
    let version = run(root.path(), &["version"]);
    assert!(version.status.success(), "{version:?}");
    assert!(String::from_utf8(version.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    let build = String::from_utf8(run(root.path(), &["version", "--json"]).stdout).unwrap();
    assert!(build.contains(&format!("\"commit\": \"{COMMIT}\"")), "{build}");
}

#[tokio::test]
async fn proxy_resolves_names_trusts_the_bundled_roots_and_serves() {
    if !is_root("proxy_resolves_names_trusts_the_bundled_roots_and_serves") {
        return;
    }
    let world = World::shared(WorldOptions::default()).await;
    let names = NameServer::start().unwrap();
    names.know("vault.web.svc.cluster.local");
    let ca = fs::read_to_string(world.servers.postgres.ca_file()).unwrap();
    // By DNS and its search list; by /etc/hosts; and localhost, whatever it is.
    for vault in ["vault", "vault.in.hosts", "localhost"] {
        let root = root(&names.address.to_string(), "127.0.0.1 vault.in.hosts\n");
        let roots = root.path().join(CONTENT[1]);
        let bundled = fs::read_to_string(&roots).unwrap();
        assert!(bundled.matches("BEGIN CERTIFICATE").count() > 100);
        let settings = settings(&world, root.path(), vault);
        if vault == "vault" {
            let stranger = Pglease::start_in(root.path(), PROGRAM, &settings).await;
            stranger
                .lines()
                .wait_for(PATIENCE, |lines| find(lines, "UnknownIssuer"))
                .await
                .expect("untrusted");
        }
        // A CA among those roots is trusted, and no other says who the server is.
        fs::OpenOptions::new().append(true).open(&roots).unwrap().write_all(ca.as_bytes()).unwrap();

        let pglease = Pglease::start_in(root.path(), PROGRAM, &settings).await;
        pglease.wait_ready().await;
        let session = pglease.connect(&world.database()).await.unwrap();
        assert_eq!(session.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
        let tls = session.rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await;
        assert_eq!(tls, [[Some("t".to_owned())]]);
        drop(session);
        pglease.sigterm();
        assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0), "{vault}");
    }
    let asked = names.asked();
    assert!(asked.iter().any(|name| name == "vault.web.svc.cluster.local"), "{asked:?}");
    assert!(!asked.iter().any(|name| name.starts_with("vault.in.hosts")), "not by /etc/hosts: {asked:?}");
}

fn find(lines: &[String], part: &str) -> Option<()> {
    lines.iter().any(|line| line.contains(part)).then_some(())
}

/// Of the world, with what the container sees: Vault by that name, the pod's token, the upstream's CA among the roots.
fn settings(world: &World<'_>, root: &Path, vault: &str) -> String {
    fs::copy(world.jwt_file(), root.join("token")).unwrap();
    let vault = format!("http://{vault}:{}", world.servers.openbao.port());
    let settings = world.settings_with("debug", &vault, "") + &world.route("db-app");
    let ca_file = format!("&sslrootcert={}", world.servers.postgres.ca_file().display());
    let jwt_file = world.jwt_file().display().to_string();
    assert!(settings.contains(&ca_file) && settings.contains(&jwt_file));
    settings.replace(&ca_file, "").replace(&jwt_file, "/token")
}
