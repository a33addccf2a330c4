//! `listen.auth_file`, read again when it changes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};
use zeroize::Zeroizing;

use super::users::{Users, UsersError};
use crate::telemetry::Causes;
use crate::tls::Reread;
use crate::wire::verifier::{Mock, Verifier};

/// The users as the file has them now, or had them when it was last of use.
#[derive(Debug)]
pub(crate) struct AuthFile {
    users: Reread<Arc<Users>, AuthFileError>,
    /// Made once, by the first users, so that what is said of a user that there is not depends on no change of the
    /// others.
    mock: Mock,
}

/// Why there are no users.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthFileError {
    #[error("listen.auth_file {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("listen.auth_file {path:?}: larger than {MAX_LEN} bytes")]
    TooLong { path: PathBuf },
    #[error("listen.auth_file {path:?}")]
    Users { path: PathBuf, source: UsersError },
}

impl AuthFile {
    pub(super) fn load(path: &Path) -> Result<Self, AuthFileError> {
        let (path, told) = (path.to_owned(), path.to_owned());
        let users = Reread::new(vec![path.clone()], move || read(&path), move |made| tell(&told, made))?;
        Ok(Self { mock: Mock::of(users.value().verifiers()), users })
    }

    /// The users to judge a client by that comes now.
    pub(super) async fn users(&self) -> Arc<Users> {
        self.users.get().await
    }

    /// In place of the verifier of a user that there is not.
    pub(super) fn mock(&self, user: &[u8], users: &Users) -> Verifier {
        self.mock.verifier(user, users.usual_shape())
    }
}

fn tell(path: &Path, made: Result<&Arc<Users>, &AuthFileError>) {
    match made {
        Ok(users) => info!(event = "auth_file.reloaded", ?path, users = users.len()),
        Err(error) => warn!(
            event = "auth_file.reload_failed",
            error = %Causes(error),
            "the users read before stay as they are",
        ),
    }
}

fn read(path: &Path) -> Result<Arc<Users>, AuthFileError> {
    let unreadable = |source| AuthFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let (len, max_len) = (usize::try_from(metadata.len()).unwrap_or(usize::MAX), MAX_LEN);
    if len > max_len {
        return Err(AuthFileError::TooLong { path: path.to_owned() });
    }
    // With room for all of it, and for the end to be seen: a copy that is given up as it grows stays in memory.
    let mut text = Zeroizing::new(Vec::with_capacity(len + 64));
    let limit = u64::try_from(max_len).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() > max_len {
        return Err(AuthFileError::TooLong { path: path.to_owned() });
    }
    let users =
        Users::parse(&text).map_err(|source| AuthFileError::Users { path: path.to_owned(), source })?;
    if metadata.mode() & 0o004 != 0 {
        warn!(
            event = "auth_file.world_readable",
            ?path,
            "everybody may read it, and try passwords at leisure against what is in it: chmod 0640"
        );
    }
    Ok(Arc::new(users))
}

/// Enough for a hundred thousand users.
const MAX_LEN: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time;

    use super::*;
    use crate::wire::verifier::tests::verifier_of;

    fn line(name: &str) -> String {
        format!("\"{name}\" \"{}\"\n", verifier_of("secret", 2, b"salt"))
    }

    #[tokio::test(start_paused = true)]
    async fn file_that_breaks_leaves_the_users_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let replace = |text: &str| {
            fs::write(dir.path().join("next"), text).unwrap();
            fs::rename(dir.path().join("next"), &path).unwrap();
        };
        assert!(matches!(AuthFile::load(&path), Err(AuthFileError::Read { .. })));
        replace("\"app\" \"secret\"");
        let refused = AuthFile::load(&path).unwrap_err();
        assert_eq!(Causes(&refused).to_string().matches("secret").count(), 0, "{}", Causes(&refused));

        replace(&line("one"));
        let file = AuthFile::load(&path).unwrap();
        let users = async || {
            time::advance(Duration::from_secs(1)).await;
            file.users().await
        };
        let has = async |name: &str| users().await.verifier(name.as_bytes()).is_some();
        let mock = file.mock(b"nobody", &*file.users().await);
        assert!(has("one").await && !has("other").await);

        for broken in ["", "\n", "\"one\"", &[line("one"), line("one")].concat()] {
            replace(broken);
            assert!(has("one").await && !has("other").await, "{broken}");
        }
        fs::remove_file(&path).unwrap();
        assert!(has("one").await);
        replace(&[line("other"), line("third")].concat());
        assert!(!has("one").await && has("other").await);
        assert_eq!(file.mock(b"nobody", &*file.users().await), mock);
    }
}
