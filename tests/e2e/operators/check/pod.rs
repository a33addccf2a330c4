//! Settings, and what the pod gives for them.

use serde_json::Value;
use tokio::process::Command;
use tokio::time;

use super::Patient;
use crate::check::{Checked, check};
use crate::{BINARY, PATIENCE};

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
    assert!(cure.contains("drain.deadline = \"15s\""), "{cure}");
    patient.settings = patient.settings.replace("\"20s\"\n[vault]", "\"15s\"\n[vault]");
    patient.is_cured("pod.deadline", "").await;
    patient.settings = pod("termination_grace = \"22s\"", "");
    patient.finds("pod.deadline", "deadline-near-grace").await;

    patient.settings = pod("memory_limit = \"64Mi\"", "max_sessions = 1000");
    let cure = patient.finds("pod.memory", "little-memory").await;
    assert!(cure.contains("157Mi"), "{cure}");
    patient.settings = pod("memory_limit = \"157Mi\"", "max_sessions = 1000");
    patient.is_cured("pod.memory", "").await;
    // The cure is the second round.
    for (sessions, outcome) in [(1000, "warning"), (100, "passed")] {
        let file = patient.world.folder().join("limited.toml");
        std::fs::write(&file, pod("", &format!("max_sessions = {sessions}"))).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "ulimit -n 500 && exec \"$@\"", "sh", BINARY, "check", "--json", "--config-file"]);
        let output = shell.arg(&file).env_clear().kill_on_drop(true).output();
        let output = time::timeout(PATIENCE, output).await.unwrap().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checked = Checked { code: output.status.code().unwrap(), document };
        let step = checked.step("pod.descriptors");
        assert_eq!((step["outcome"].as_str(), checked.code), (Some(outcome), 0), "{step:#}");
        if outcome == "warning" {
            checked.trouble("pod.descriptors", "few-descriptors");
        }
        let cure = step["cure"].as_str().unwrap_or("set listen.max_sessions = 100,");
        assert!(cure.starts_with("set listen.max_sessions = 100,"), "{cure}");
    }

    patient.settings =
        settings.replacen("role = \"web\"", "", 1).replacen("[listen]", "[listen]\nmax_sesions = 7", 1);
    let checked = check(&patient.world, &patient.settings, &["--offline"]).await;
    assert_eq!((checked.code, checked.failed()), (78, vec!["config.settings"; 2]), "{:#}", checked.document);
    checked.trouble("config.settings", "setting");
    let cures: Vec<_> =
        checked.steps().iter().map(|step| step["cure"].as_str().unwrap_or_default()).collect();
    assert!(cures.iter().any(|cure| cure.contains("max_sessions")), "{cures:?}");
    assert!(cures.iter().any(|cure| cure.contains("--vault-login-role")), "{cures:?}");

    // A file that holds something else, and a setting that gives something up.
    let broken = patient.world.folder().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let ca = patient.world.servers.postgres.ca_file().display().to_string();
    patient.settings = settings.replace(&ca, &broken.display().to_string());
    let checked = check(&patient.world, &patient.settings, &["--offline"]).await;
    checked.trouble("config.files", "file");
    assert_eq!(checked.code, 78);
    patient.settings = settings.replace(&format!("sslmode=verify-full&sslrootcert={ca}"), "sslmode=require");
    patient.finds("config.settings", "setting-gives-up").await;
    patient.settings = settings;
    patient.is_well("config.settings").await;
}
