//! Settings, and what the pod gives for them.

use std::fs;

use tokio::process::Command;

use super::Patient;
use crate::BINARY;
use crate::check::{Checked, check, run_by};

#[tokio::test]
async fn settings_and_limits_of_the_pod_are_told_with_what_to_set() {
    let mut patient = Patient::new().await;
    let settings = patient.settings.clone();
    let pod = |pod: &str, listen: &str| {
        let settings = settings.replacen("[listen]\n", &format!("[listen]\n{listen}\n"), 1);
        format!("[pod]\n{pod}\n[drain]\ndeadline = \"20s\"\n{settings}")
    };
    patient.settings = pod("termination_grace = \"20s\"", "");
    let cure = patient.finds("pod.deadline", "deadline-past-grace").await;
    let deadline = as_it_says(&cure, "set drain.", " or less");
    patient.settings = patient.settings.replace("deadline = \"20s\"", deadline);
    patient.cured("pod.deadline", "deadline-past-grace").await;

    patient.settings = pod("termination_grace = \"22s\"\nmemory_limit = \"64Mi\"", "max_sessions = 1000");
    let checked = patient.check().await;
    let late = checked.only_trouble("pod.deadline", "deadline-near-grace");
    let deadline = as_it_says(late["cure"].as_str().unwrap(), "set drain.", " or less");
    let small = checked.only_trouble("pod.memory", "little-memory");
    let limit = as_it_says(small["cure"].as_str().unwrap(), "the container's limit to ", " (");
    patient.settings = patient.settings.replace("deadline = \"20s\"", deadline).replace("64Mi", limit);
    patient.cured("pod.deadline", "deadline-near-grace").await.cured("pod.memory", "little-memory");

    let limited = async |sessions: &str| {
        let file = patient.world.folder().join("limited.toml");
        fs::write(&file, pod("", sessions)).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "ulimit -n 500 && exec \"$@\"", "sh", BINARY]);
        Checked::of(&run_by(shell, &file, &["--json"]).await)
    };
    let checked = limited("max_sessions = 1000").await;
    let few = checked.only_trouble("pod.descriptors", "few-descriptors");
    let sessions = as_it_says(few["cure"].as_str().unwrap(), "set listen.", ",");
    assert_eq!(sessions, "max_sessions = 100");
    limited(sessions).await.cured("pod.descriptors", "few-descriptors");

    patient.settings =
        settings.replacen("role = \"web\"", "", 1).replacen("[listen]", "[listen]\nmax_sesions = 7", 1);
    let checked = check(&patient.world, &patient.settings, &["--offline"]).await;
    assert_eq!((checked.code, checked.failed()), (78, vec!["config.settings"; 2]), "{:#}", checked.document);
    checked.trouble("config.settings", "setting");
    let cures: Vec<_> =
        checked.steps().iter().map(|step| step["cure"].as_str().unwrap_or_default()).collect();
    assert!(cures.contains(&"did you mean listen.max_sessions?"), "{cures:?}");
    assert!(cures.iter().any(|cure| cure.contains("--vault-login-role")), "{cures:?}");
    let corrected = patient.settings.replace("max_sesions", "max_sessions");
    let arguments = ["--offline", "--vault-login-role", "web"];
    check(&patient.world, &corrected, &arguments).await.cured("config.settings", "setting");

    // A file that holds something else, and a setting that gives something up.
    let broken = patient.world.folder().join("broken.pem");
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let ca = patient.world.servers.postgres.ca_file().display().to_string();
    patient.settings = settings.replace(&ca, &broken.display().to_string());
    let checked = check(&patient.world, &patient.settings, &["--offline"]).await;
    let cure = checked.only_trouble("config.files", "file")["cure"].as_str().unwrap();
    assert!(cure.starts_with("mend the file, or route.upstream"), "{cure}");
    fs::copy(&ca, &broken).unwrap();
    check(&patient.world, &patient.settings, &["--offline"]).await.cured("config.files", "file");
    patient.settings = settings.replace(&format!("sslmode=verify-full&sslrootcert={ca}"), "sslmode=require");
    let cure = patient.finds("config.settings", "setting-gives-up").await;
    assert!(cure.contains("sslmode=verify-full"), "{cure}");
    patient.settings = settings;
    patient.cured("config.settings", "setting-gives-up").await;
}

/// What stands in a cure between these.
fn as_it_says<'a>(cure: &'a str, before: &str, behind: &str) -> &'a str {
    let rest = cure.split_once(before).map(|(_, rest)| rest);
    let said = rest.and_then(|rest| rest.split_once(behind));
    said.unwrap_or_else(|| panic!("{before}…{behind} is not in {cure}")).0
}
