//! HAProxy and PgBouncer, each with one thread, as pglease has by default.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::time;

use super::scenarios::Tls;
use super::support::pki::Issued;
use super::support::process::{Folder, Process, Spawn};
use super::support::{PATIENCE, env, free_ports};

/// One of them, on a port of its own.
pub(crate) struct Peer {
    // Dropped in this order.
    pub(crate) process: Process,
    _folder: Folder,
    pub(crate) port: u16,
}

/// What is missing, and how to get it.
pub(crate) type Absent = String;

/// TCP from one port to another, for so many sessions.
pub(crate) async fn haproxy(to: u16, sessions: usize) -> Result<Peer, Absent> {
    let program = find("haproxy")?;
    let folder = Folder::create(None);
    let port = free_ports(1);
    let settings = format!(
        "global\n  nbthread 1\n  maxconn {}\n\
         defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         listen postgresql\n  bind 127.0.0.1:{port}\n  server postgresql 127.0.0.1:{to}\n",
        sessions + 100
    );
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, settings).unwrap();
    let arguments = ["-db", "-f", &file.display().to_string()].map(str::to_owned);
    start(&program, &arguments, folder, port).await
}

/// A pool of sessions of the superuser: clients that come find one logged in. `files` is what TLS takes.
pub(crate) async fn pgbouncer(to: u16, database: &str, tls: Tls, issued: &Issued) -> Result<Peer, Absent> {
    let program = find("pgbouncer")?;
    let folder = Folder::create(None);
    let port = free_ports(1);
    // It does not run as root.
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let mut settings = format!(
        "[databases]\n{database} = host=127.0.0.1 port={to} dbname={database} user=postgres password=postgres\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = session\n\
         max_client_conn = 4000\ndefault_pool_size = 1000\nunix_socket_dir =\nlog_connections = 0\n\
         log_disconnections = 0\nignore_startup_parameters = extra_float_digits\n\
         server_tls_sslmode = {}\nclient_tls_sslmode = {}\n",
        if tls.of_upstream() { "require" } else { "disable" },
        if tls.of_client() { "require" } else { "disable" },
    );
    if tls.of_client() {
        let (certificate, key) = (file("tls.pem", &issued.certificate), file("tls.key", &issued.key));
        let _ = writeln!(settings, "client_tls_cert_file = {certificate}\nclient_tls_key_file = {key}");
    }
    if is_root {
        settings += "user = nobody\n";
    }
    let settings = file("pgbouncer.ini", &settings);
    start(&program, &[settings], folder, port).await
}

async fn start(program: &Path, arguments: &[String], folder: Folder, port: u16) -> Result<Peer, Absent> {
    let spawn =
        Spawn { program, arguments, environment: &[], folder: folder.path(), uid: None, stop: Signal::KILL };
    let process = Process::spawn(&spawn);
    let listening = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if process.lines().have_ended() {
                return false;
            }
            time::sleep(std::time::Duration::from_millis(20)).await;
        }
        true
    };
    if !time::timeout(PATIENCE, listening).await.unwrap_or(false) {
        return Err(format!(
            "{} does not start: {}",
            program.display(),
            process.lines().tail().replace('\n', "; ")
        ));
    }
    Ok(Peer { process, _folder: folder, port })
}

/// Where this program is, on the path or where Debian has what only root runs.
pub(crate) fn find(program: &str) -> Result<PathBuf, Absent> {
    let path = env("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let there = path.split(':').map(|folder| Path::new(folder).join(program)).find(|file| file.is_file());
    there.ok_or_else(|| format!("{program} is not installed (`apt-get install -y {program}`)"))
}
