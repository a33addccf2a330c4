//! What is to be seen of a process, and how a secret may be found in it.

use std::fs;
use std::io::ErrorKind;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::PATIENCE;
use crate::support::pglease::Pglease;

/// What there is to be seen of a process.
#[derive(Default)]
pub(super) struct Shown(pub(super) String);

impl Shown {
    pub(super) fn error(&mut self, error: &tokio_postgres::Error) {
        self.0 += &[error.to_string(), format!("{error:?}"), "\n".to_owned()].concat();
    }

    /// What it tells to those who ask, and what the system tells of it.
    pub(super) async fn process(&mut self, pglease: &Pglease) {
        for endpoint in ["/metrics", "/startup", "/readyz", "/livez", "/"] {
            self.0 += &pglease.get(endpoint).await.1;
        }
        self.0 += &pglease.status().await.to_string();
        let page = pglease.admin_page().await;
        assert!(page.contains("<h2>Credentials</h2>"), "{page}");
        self.0 += &page;
        assert!(self.0.contains("pglease_vault_requests_total"), "{}", self.0);
        let pid = pglease.process().pid();
        for file in ["cmdline", "comm", "status"] {
            self.0 += &fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        }
        match fs::read(format!("/proc/{pid}/environ")) {
            Ok(environment) => self.0 += &String::from_utf8(environment).unwrap(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        }
    }

    /// What a command prints that asks it.
    pub(super) async fn command(&mut self, pglease: &Pglease, arguments: &[&str]) {
        let output = pglease.run_command(arguments).await;
        // A rotation may take longer than is waited for, on a busy machine.
        let is_late = String::from_utf8_lossy(&output.stdout).contains("not done yet");
        assert!(output.status.success() || is_late, "{arguments:?}: {output:?}");
        self.0 += &[output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
    }

    /// All that it has logged, once it has ended.
    pub(super) async fn log(&mut self, pglease: &Pglease) {
        pglease.lines().wait_for(PATIENCE, |_| None::<()>).await;
        self.0 += &pglease.lines().all().join("\n");
    }

    /// `name` says which of the secrets this is.
    pub(super) fn assert_without(&self, name: &str, secret: impl AsRef<[u8]>) {
        for spelling in spellings(secret.as_ref()) {
            assert!(!self.0.contains(&spelling), "{name} is shown, as {spelling}, in\n{}", self.0);
        }
    }
}

/// How bytes may be found in a text: as they are, whole or in parts, or encoded.
fn spellings(secret: &[u8]) -> Vec<String> {
    let hex: String = secret
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|half| char::from_digit(half.into(), 16))
        .collect();
    let list = format!("{secret:?}");
    let mut spellings = vec![
        STANDARD_NO_PAD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        hex.to_uppercase(),
        hex,
        list.trim_matches(['[', ']']).to_owned(),
        secret.escape_ascii().to_string(),
    ];
    if let Ok(text) = std::str::from_utf8(secret) {
        let parts = text.as_bytes().chunks_exact(PART).map(|part| String::from_utf8_lossy(part).into_owned());
        spellings.extend(parts);
    }
    if let Ok(number) = <[u8; 4]>::try_from(secret) {
        spellings.push(u32::from_be_bytes(number).to_string());
        spellings.push(i32::from_be_bytes(number).to_string());
    }
    // Four bytes are found everywhere by chance.
    spellings.retain(|spelling| spelling.len() > 6);
    spellings
}

/// So much of a secret is too much.
const PART: usize = 12;
