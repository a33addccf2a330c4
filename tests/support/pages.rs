//! What pages tell an operator to do, so that it can be done here.

use std::path::Path;

use super::Servers;

/// The blocks of code, each with its language, in their order.
pub(crate) fn blocks(page: &str) -> Vec<(&str, &str)> {
    page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect()
}

/// Those in this language, one after the other.
pub(crate) fn blocks_in(page: &str, language: &str) -> String {
    blocks(page).into_iter().filter(|(of, _)| *of == language).map(|(_, text)| text).collect()
}

/// `text` with each of these replaced, all of which it has.
pub(crate) fn adapted(text: &str, replacements: &[(&str, String)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no {from} in\n{text}");
        text.replace(from, to)
    })
}

/// Variables of a shell that works in `folder`, where a program called `vault` is, on these servers.
pub(crate) fn variables(folder: &Path, servers: &Servers) -> [(&'static str, String); 8] {
    let Servers { postgres, openbao } = servers;
    [
        ("PATH", format!("{}:{}:/usr/bin:/bin", folder.display(), postgres.bin().display())),
        ("HOME", folder.display().to_string()),
        ("VAULT_ADDR", openbao.address()),
        ("VAULT_TOKEN", "root".to_owned()),
        ("PGHOST", "localhost".to_owned()),
        ("PGPORT", postgres.port().to_string()),
        ("PGUSER", "postgres".to_owned()),
        ("PGPASSWORD", "postgres".to_owned()),
    ]
}

/// Where things are on this machine, in the variables of `deploy/vault/setup.sh`; `reviewer` is a file with a token for
/// the API server, whom the PEM file vouches for.
pub(crate) fn addresses(servers: &Servers, kubernetes: &str, kubernetes_ca: &Path) -> String {
    let postgres = &servers.postgres;
    format!(
        "DB_HOST=localhost DB_PORT={} DB_PARAMETERS='sslmode=verify-full&sslrootcert={}' \
         KUBERNETES_HOST={kubernetes} KUBERNETES_CA_FILE={} KUBERNETES_REVIEWER_TOKEN_FILE=reviewer ",
        postgres.port(),
        postgres.ca_file().display(),
        kubernetes_ca.display(),
    )
}
