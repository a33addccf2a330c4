//! What stands in a credential file: a credential in, bytes out, for each format. Pure; the file's life is `file`'s.
//!
//! What is rendered is a secret: it is built in a [`buffer::Buffer`], which leaves no copy behind.

mod buffer;
mod env;
mod forms;
mod go;
mod json;
mod pgpass;
mod pg_service;
mod properties;
mod template;
mod uri;

#[cfg(test)]
mod tests;

use zeroize::Zeroizing;

use buffer::Buffer;

pub(crate) use forms::forms;
pub(crate) use template::{Template, TemplateError};

/// A credential, as Vault gave it.
#[derive(Clone, Copy)]
pub(crate) struct Secret<'a> {
    pub(crate) username: &'a str,
    pub(crate) password: &'a str,
    /// Empty for a static role.
    pub(crate) lease_id: &'a str,
    /// In seconds, as granted when it was read.
    pub(crate) lease_duration: u64,
    pub(crate) renewable: bool,
}

impl<'a> Secret<'a> {
    /// `.Data` of a database credential, in the order of its keys.
    fn data(&self) -> [(&'static str, &'a str); 2] {
        [("password", self.password), ("username", self.username)]
    }
}

/// Where the credential is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// In order, at least one, with their ports. A Unix socket is its directory.
    pub(crate) hosts: Vec<(&'a str, u16)>,
    /// Empty where none is named.
    pub(crate) database: &'a str,
    /// libpq's other keywords, `sslmode` first.
    pub(crate) options: Vec<(&'a str, &'a str)>,
    /// The section of a service file.
    pub(crate) service: &'a str,
}

impl Target<'_> {
    /// `host` and `port` as libpq takes several of them.
    fn host_list(&self) -> (String, String) {
        let join = |parts: Vec<String>| parts.join(",");
        let hosts = self.hosts.iter().map(|(host, _)| (*host).to_owned()).collect();
        let ports = self.hosts.iter().map(|(_, port)| port.to_string()).collect();
        (join(hosts), join(ports))
    }
}

/// How a file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Env,
    Pgpass,
    PgService,
    Uri,
    Properties,
    /// The Vault Agent's own where it is given no template.
    UsernamePassword,
    Template(Template),
}

/// Why a credential cannot be written in a format. What is in the file then stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenderError {
    #[error("the format {format} has no way to write a line break, and the credential has one")]
    LineBreak { format: &'static str },
    #[error(
        "the format pg_service has no way to write white space at the end of a value, and the password has some"
    )]
    TrailingSpace,
    #[error(
        "libpq reads lines of at most {max_len} bytes of a service file, and the password would make a longer one"
    )]
    LongLine { max_len: usize },
    #[error("the credential has a zero byte, which neither PostgreSQL nor an environment can take")]
    ZeroByte,
    #[error("the format {format} says where the credential is for, and the file has no upstream")]
    NoTarget { format: &'static str },
    #[error("longer than {max_len} bytes")]
    TooLong { max_len: usize },
}

impl Format {
    /// The file's bytes. `target` is what `pgpass`, `pg_service` and `uri` cannot do without, and what `json`, `env`
    /// and `properties` add where it is given.
    pub(crate) fn render(
        &self,
        secret: &Secret<'_>,
        target: Option<&Target<'_>>,
    ) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        if secret.username.contains('\0') || secret.password.contains('\0') {
            return Err(RenderError::ZeroByte);
        }
        let mut out = Buffer::default();
        match self {
            Self::Json => json::write(secret, target, &mut out),
            Self::Env => env::write(secret, target, &mut out),
            Self::Pgpass => pgpass::write(secret, wanted(target, "pgpass")?, &mut out)?,
            Self::PgService => pg_service::write(secret, wanted(target, "pg_service")?, &mut out)?,
            Self::Uri => uri::write(secret, wanted(target, "uri")?, &mut out),
            Self::Properties => properties::write(secret, target, &mut out),
            Self::UsernamePassword => username_password(secret, &mut out),
            Self::Template(template) => return template.render(secret),
        }
        out.finish()
    }
}

fn wanted<'a>(target: Option<&'a Target<'a>>, format: &'static str) -> Result<&'a Target<'a>, RenderError> {
    target.ok_or(RenderError::NoTarget { format })
}

/// What the Agent's injector makes of a secret without a template, byte for byte.
fn username_password(secret: &Secret<'_>, out: &mut Buffer) {
    for (key, value) in secret.data() {
        out.push_str(key);
        out.push_str(": ");
        out.push_str(value);
        out.push('\n');
    }
}
