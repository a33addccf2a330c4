//! What `pglease injector certificate` is told: by flags alone, and in a pod by where Kubernetes puts things.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches};
use url::Url;

use super::Ca;
use super::injector::is_object_name;

/// Which objects, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateConfig {
    /// Of Service and Secret.
    pub(crate) namespace: String,
    /// That the API server posts to.
    pub(crate) service: String,
    pub(crate) secret: String,
    /// A MutatingWebhookConfiguration.
    pub(crate) webhook: String,
    /// `https://`, host and port, without a slash at its end.
    pub(crate) api_server: String,
    pub(crate) token_file: PathBuf,
    pub(crate) ca: Ca,
}

/// What is wrong with the flags.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateFlagError {
    #[error("--{flag} = {value:?}: no name that Kubernetes gives to objects; write one")]
    Name { flag: &'static str, value: String },
    #[error(
        "--{API_SERVER} = {value:?}: not an address of an API server; write it like \"https://10.96.0.1:443\""
    )]
    Address { value: String },
    #[error(
        "there is no API server: this is no pod, as KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; \
         give --{API_SERVER}, --{TOKEN_FILE} and --{CA_FILE}"
    )]
    NoApiServer,
}

/// The flags of `pglease injector certificate`.
pub(crate) fn certificate_flags() -> Vec<Arg> {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    vec![
        flag(NAMESPACE, "NAME", "Namespace of the Service and the Secret").required(true),
        flag(SERVICE, "NAME", "Service that the API server posts to: the certificate is for it")
            .required(true),
        flag(SECRET, "NAME", "Secret that certificate, key and CA are kept in").required(true),
        flag(WEBHOOK, "NAME", "MutatingWebhookConfiguration whose caBundle is set").required(true),
        flag(API_SERVER, "URL", "The API server [default: that of the pod]"),
        flag(TOKEN_FILE, "PATH", "Token towards it").default_value(POD_TOKEN),
        flag(CA_FILE, "PATH", "PEM file of the CAs that its certificate is verified against")
            .default_value(POD_CA),
    ]
}

/// Takes [`certificate_flags`] from `matches`, and where the API server is from `variables`.
pub(crate) fn load_certificate(
    matches: &ArgMatches,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<CertificateConfig, CertificateFlagError> {
    let given = |flag: &str| matches.get_one::<String>(flag).cloned();
    let name = |flag: &'static str| {
        let value = given(flag).unwrap_or_default();
        if is_object_name(&value) { Ok(value) } else { Err(CertificateFlagError::Name { flag, value }) }
    };
    let api_server = match given(API_SERVER) {
        Some(value) => address(value)?,
        None => of_pod(variables).ok_or(CertificateFlagError::NoApiServer)?,
    };
    Ok(CertificateConfig {
        namespace: name(NAMESPACE)?,
        service: name(SERVICE)?,
        secret: name(SECRET)?,
        webhook: name(WEBHOOK)?,
        api_server,
        token_file: given(TOKEN_FILE).unwrap_or_default().into(),
        ca: Ca::File(given(CA_FILE).unwrap_or_default().into()),
    })
}

fn address(value: String) -> Result<String, CertificateFlagError> {
    let is_plain = |url: &Url| {
        url.scheme() == "https" && url.has_host() && url.username().is_empty() && url.query().is_none()
    };
    match Url::parse(&value).ok().filter(is_plain) {
        Some(url) => Ok(url.as_str().trim_end_matches('/').to_owned()),
        None => Err(CertificateFlagError::Address { value }),
    }
}

/// Kubernetes, "Accessing the Kubernetes API from a Pod".
fn of_pod(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Option<String> {
    let (mut host, mut port) = (None, None);
    for (name, value) in variables {
        match name.to_str() {
            Some("KUBERNETES_SERVICE_HOST") => host = value.into_string().ok(),
            Some("KUBERNETES_SERVICE_PORT") => port = value.into_string().ok(),
            _ => {}
        }
    }
    let (host, port) = (host?, port?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    address(format!("https://{host}:{port}")).ok()
}

const NAMESPACE: &str = "namespace";
const SERVICE: &str = "service";
const SECRET: &str = "secret";
const WEBHOOK: &str = "webhook";
const API_SERVER: &str = "api-server";
const TOKEN_FILE: &str = "token-file";
const CA_FILE: &str = "ca-file";
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const POD_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn load(more: &[&str], variables: &[(&str, &str)]) -> Result<CertificateConfig, CertificateFlagError> {
        let own =
            ["certificate", "--namespace=pglease", "--service=injector", "--secret=tls", "--webhook=pglease"];
        let arguments = own.iter().chain(more);
        let matches = Command::new("certificate")
            .args(certificate_flags())
            .args_override_self(true)
            .try_get_matches_from(arguments)
            .unwrap();
        load_certificate(&matches, variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn in_a_pod_kubernetes_says_where_the_api_server_is() {
        let pod = |host| [("KUBERNETES_SERVICE_HOST", host), ("KUBERNETES_SERVICE_PORT", "6443")];
        let config = load(&[], &pod("10.96.0.1")).unwrap();
        assert_eq!(config.api_server, "https://10.96.0.1:6443");
        assert_eq!(config.token_file, PathBuf::from(POD_TOKEN));
        assert_eq!(config.ca, Ca::File(POD_CA.into()));
        assert_eq!(load(&[], &pod("fd00::1")).unwrap().api_server, "https://[fd00::1]:6443");
        assert_eq!(load(&[], &[]), Err(CertificateFlagError::NoApiServer));
        let elsewhere = load(&["--api-server=https://api.example.com/"], &pod("10.96.0.1")).unwrap();
        assert_eq!(elsewhere.api_server, "https://api.example.com");
    }

    #[test]
    fn names_and_addresses_are_judged() {
        for more in
            ["--secret=A", "--namespace=", "--webhook=a/b", "--api-server=http://api", "--api-server=api"]
        {
            let error = load(&["--api-server=https://api", more], &[]).unwrap_err().to_string();
            assert!(error.starts_with(more.split('=').next().unwrap()), "{error}");
        }
    }
}
