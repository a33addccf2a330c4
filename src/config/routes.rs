//! `[[route]]`: whose sessions go where, on whose credentials.

use std::path::Path;

use super::error::{ConfigError, Place, Problem};
use super::settings::{Check, Files, Reader, Settings};
use super::{
    AtLeaseEnd, ClientCert, RouteConfig, TargetSessionAttrs, UpstreamConfig, upstream, value, vault,
};

/// All routes in their order; a route that is wrong is missing, and why is kept.
pub(crate) fn read(routes: &[Settings], files: Files, errors: &mut Vec<ConfigError>) -> Vec<RouteConfig> {
    let mut read = Vec::with_capacity(routes.len());
    let mut clients: Vec<Clients> = Vec::with_capacity(routes.len());
    for settings in routes {
        let mut reader = Reader::new(settings, errors, files);
        let own = Clients::read(&mut reader, settings.table.clone());
        read.extend(own.as_ref().and_then(|own| route(&mut reader, own)));
        let Some(own) = own else { continue };
        if let Some(error) = clients.iter().find_map(|earlier| earlier.shadow(&own)) {
            errors.push(error);
        }
        clients.push(own);
    }
    read
}

/// Whom a route takes.
#[derive(Debug)]
struct Clients {
    database: Option<String>,
    user: Option<String>,
    place: Option<Place>,
}

impl Clients {
    fn read(reader: &mut Reader<'_>, place: Option<Place>) -> Option<Self> {
        let database = reader.value("route.database", value::pattern);
        let user = reader.value("route.user", value::pattern);
        Some(Self { database: database?, user: user?, place })
    }

    /// The error of a later route, if this one takes all its clients.
    fn shadow(&self, later: &Self) -> Option<ConfigError> {
        let takes = |own: &Option<String>, other: &Option<String>| own.is_none() || own == other;
        if !takes(&self.database, &later.database) || !takes(&self.user, &later.user) {
            return None;
        }
        let (place, earlier) = (later.place.clone()?, self.place.clone()?);
        Some(ConfigError::RouteShadowed { place, earlier })
    }
}

fn route(reader: &mut Reader<'_>, clients: &Clients) -> Option<RouteConfig> {
    let upstream = upstream(reader);
    let vault_path = reader.value("route.vault_path", vault::path);
    let startup_role = reader.optional("route.startup_role", value::text);
    let at_lease_end = reader.word(
        "route.at_lease_end",
        &[("auto", AtLeaseEnd::Auto), ("leave", AtLeaseEnd::Leave), ("close", AtLeaseEnd::Close)],
    );
    let max_session_age = reader.value("route.max_session_age", value::duration);
    let warm = reader.integer("route.warm");
    let optional = reader.value("route.optional", value::boolean);
    let wanted = upstream.as_ref().map(|upstream| upstream.target_session_attrs);
    if warm.is_some_and(|warm| warm > 0) && wanted.is_some_and(may_become_unfit) {
        reader.fault("route.warm", Problem::WarmStandby);
    }
    Some(RouteConfig {
        database: clients.database.clone(),
        user: clients.user.clone(),
        upstream: upstream?,
        vault_path: vault_path?,
        startup_role,
        at_lease_end: at_lease_end?,
        max_session_age: Some(max_session_age?).filter(|age| !age.is_zero()),
        warm: warm?,
        optional: optional?,
    })
}

/// Whether a server may cease to be what is wanted while its sessions go on: a standby that is promoted keeps them, a
/// primary never becomes a standby with a session open.
fn may_become_unfit(wanted: TargetSessionAttrs) -> bool {
    use TargetSessionAttrs::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    match wanted {
        Any | ReadWrite | Primary => false,
        ReadOnly | Standby | PreferStandby => true,
    }
}

fn upstream(reader: &mut Reader<'_>) -> Option<UpstreamConfig> {
    let text = reader.value("route.upstream", value::text)?;
    upstream_of(reader, "route.upstream", &text)
}

/// What is written for the key `name`, with the files that it names.
pub(super) fn upstream_of(reader: &mut Reader<'_>, name: &'static str, text: &str) -> Option<UpstreamConfig> {
    let upstream = match upstream::parse(text) {
        Ok(upstream) => upstream,
        Err(errors) => {
            for error in errors {
                reader.fault(name, error.into());
            }
            return None;
        }
    };
    let mut is_usable = true;
    for (keyword, path, check) in files(&upstream) {
        let path = path.to_string_lossy().into_owned();
        if let Err(problem) = reader.check(check)(&path) {
            let problem = Box::new(problem);
            reader.fault(name, Problem::UpstreamFile { keyword, path, problem });
            is_usable = false;
        }
    }
    is_usable.then_some(upstream)
}

/// The files of an upstream by the keywords that name them.
fn files(upstream: &UpstreamConfig) -> Vec<(&'static str, &Path, Check)> {
    let mut files: Vec<(&'static str, &Path, Check)> = Vec::new();
    if let Some(path) = &upstream.ssl_root_cert {
        files.push(("sslrootcert", path, value::certificate_file));
    }
    if let Some(ClientCert { cert_file, key_file }) = &upstream.ssl.client {
        files.push(("sslcert", cert_file, value::certificate_file));
        files.push(("sslkey", key_file, value::own_key_file));
    }
    files.extend(upstream.ssl.crl_file.as_deref().map(|path| ("sslcrl", path, value::crl_file as Check)));
    files.extend(upstream.ssl.crl_dir.as_deref().map(|path| ("sslcrldir", path, value::directory as Check)));
    files
}
