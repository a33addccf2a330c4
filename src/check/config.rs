//! The settings, and the files that they name, as `pglease proxy` would read them at its start. No network.

use std::sync::Arc;
use std::time::Duration;

use super::Target;
use super::fault::{Fault, Warning};
use super::name::Name;
use super::report::{Found, Recorder};
use crate::config::{Config, ConfigErrors, Loaded, VaultConfig, grace_warning};
use crate::file;
use crate::session::auth::Auth;
use crate::session::encryption::ClientTls;
use crate::telemetry::{Causes, Metrics};
use crate::upstream::Upstream;
use crate::vault::Vault;

/// Settings that hold, and what is made of them.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) vault: Arc<Vault>,
    pub(super) targets: Vec<Target>,
}

/// Looks at all of it; `None` where something is wrong, all of which is written down. What is of the pod is left to its
/// own step, where there is one.
pub(super) async fn check(
    loaded: Result<Loaded, ConfigErrors>,
    offline: bool,
    record: &Recorder,
) -> Option<Parts> {
    let name = Name::ConfigSettings;
    let Loaded { config, warnings, .. } = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => {
            for error in errors {
                record.write(name, "", Duration::ZERO, error_found(&error.to_string())).await;
            }
            return None;
        }
    };
    let of_pod = grace_warning(&config).filter(|_| !offline);
    for warning in warnings.into_iter().filter(|warning| Some(warning) != of_pod.as_ref()) {
        record.write(name, "", Duration::ZERO, warning_found(&warning)).await;
    }
    record.write(name, "", Duration::ZERO, Found::fine(overview(&config))).await;
    record.step(Name::ConfigFiles, "", async { files(config) }).await
}

/// Errors of the settings say all in one line: what is written and where, what is wrong with it, and the cure.
fn error_found(error: &str) -> Found {
    let (found, cure) = in_two(error);
    Found::fault(Fault::Setting, found, "pglease does not start with these settings", cure)
}

fn warning_found(warning: &str) -> Found {
    let (found, cure) = in_two(warning);
    Found::warning(Warning::Setting, found, "this is what the settings say", cure)
}

fn in_two(line: &str) -> (&str, &str) {
    line.rsplit_once("; ").unwrap_or((line, "see docs/settings.md"))
}

fn overview(config: &Config) -> String {
    let Config { vault, routes, files, .. } = config;
    let counted = |count: usize, word: &str| match count {
        0 => String::new(),
        1 => format!("1 {word}, "),
        count => format!("{count} {word}s, "),
    };
    format!("{}{}Vault at {}", counted(routes.len(), "route"), counted(files.len(), "file"), vault.address)
}

/// What a start of the proxy reads before it serves.
fn files(config: Config) -> Found<Parts> {
    let metrics = Arc::new(Metrics::new());
    // The directory is the running sidecar's: nothing of the check is kept there.
    let of_vault = VaultConfig { state_dir: None, ..config.vault.clone() };
    let fault = |error: &(dyn std::error::Error + 'static), cure: &str| {
        let cause = "pglease does not start without it";
        Found::fault(Fault::File, Causes(error).to_string(), cause, cure)
    };
    let vault = match Vault::load(&of_vault, Arc::clone(&metrics)) {
        Ok(vault) => Arc::new(vault),
        Err(error) => return fault(&error, "mend the file, or the setting under [vault] that names it"),
    };
    if let Err(error) = Auth::load(&config.listen.auth) {
        return fault(&error, "mend the file of listen.auth_file");
    }
    if let Some(Err(error)) = config.listen.tls.as_ref().map(|files| ClientTls::load(files, &metrics)) {
        return fault(&error, "mend the files of listen.tls_cert_file and listen.tls_key_file");
    }
    let (mut targets, mut of_files) = (Vec::new(), Vec::new());
    for file in &config.files {
        if let Err(error) = file::format(file) {
            return fault(&error, "mend the template");
        }
        match file.upstream.as_ref().map(|config| (config, Upstream::load(config))) {
            Some((config, Ok(upstream))) => of_files.push(Target::of_file(file, config, upstream)),
            Some((_, Err(error))) => {
                return fault(&error, &format!("mend the file, or file.upstream of {}", file.path.display()));
            }
            None => {}
        }
    }
    for route in &config.routes {
        match Upstream::load(&route.upstream) {
            Ok(upstream) => targets.push(Target::of_route(route, upstream)),
            Err(error) => {
                return fault(&error, &format!("mend the file, or route.upstream {}", route.upstream));
            }
        }
    }
    // What a route and a file both have is looked at for the route, which asks for more.
    targets.extend(of_files);
    Found::fine("all files that the settings name can be used").with(Parts { config, vault, targets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_the_settings_is_split_before_its_cure() {
        let line = "vault.address = x (flag --vault-address): not a URL; write it like https://vault:8200";
        let (found, cure) = in_two(line);
        assert_eq!(found, "vault.address = x (flag --vault-address): not a URL");
        assert_eq!(cure, "write it like https://vault:8200");
    }
}
