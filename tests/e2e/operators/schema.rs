//! `pglease schema` against what the program itself takes and refuses, judged by somebody else's validator.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::spawn_blocking;

use super::{run, text};
use crate::check::check;
use crate::clients::install;
use crate::support::world::{World, WorldOptions};

/// Settings in README and docs, and those that `deploy/` brings: files, and `ConfigMap`s that are no template.
fn examples() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let files =
        docs.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|end| end == "md"));
    let mut examples = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for (number, block) in text.split("```toml\n").skip(1).enumerate() {
            let block = block.split_once("```").unwrap().0;
            examples.push((format!("{} {number}", path.display()), block.to_owned()));
        }
        examples.extend(in_config_maps(&path, &text));
    }
    for path in files_under(&root.join("deploy")) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if path.extension().is_some_and(|end| end == "toml") {
            examples.push((path.display().to_string(), text));
        } else {
            examples.extend(in_config_maps(&path, &text));
        }
    }
    examples
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path] }).collect()
}

/// Values of `ConfigMap`s whose key is the name of a TOML file, but those that Helm fills in.
fn in_config_maps(path: &Path, text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.trim_end().ends_with(".toml: |") {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let mut value = String::new();
        while let Some(line) =
            lines.next_if(|line| line.trim().is_empty() || line.len() - line.trim_start().len() > indent)
        {
            value.push_str(line.trim_start());
            value.push('\n');
        }
        if !value.contains("{{") {
            found.push((format!("{}: {}", path.display(), line.trim()), value));
        }
    }
    found
}

/// Documents of checks that went well, that found something, and that were broken off.
#[tokio::test]
async fn documents_of_a_check_are_as_their_schema_says() {
    let schema: Value = serde_json::from_slice(&run(&["schema", "check"]).await.stdout).unwrap();
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + &world.route("db-app");
    let mut documents = Vec::new();
    for (settings, arguments) in [
        (settings.clone(), &[][..]),
        (settings.clone(), &["--offline"]),
        (settings.clone(), &["--max", "1ms"]),
        (settings.replace("role = \"web\"", "role = \"nobody\""), &[]),
        (settings.replace("[listen]", "[listen]\nmax_sesions = 7"), &[]),
    ] {
        documents.push(check(&world, &settings, arguments).await.document.to_string());
    }
    let good = documents.len();
    let changed = |from: &str, to: &str| documents[0].replacen(from, to, 1);
    let bad = [
        changed("\"passed\"", "\"fine\""),
        changed("\"exit_code\":0", "\"exit_code\":7"),
        changed("\"cure\":null", "\"cure\":\"x\""),
    ];
    documents.extend(bad);
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let verdicts = judged(&schema, "json.loads", &documents).await;
    for (number, (verdict, document)) in verdicts.iter().zip(&documents).enumerate() {
        assert_eq!(verdict.is_none(), number < good, "{verdict:?} {document}");
    }
}

/// The verdict of Python's jsonschema on each document of settings.
async fn verdicts(schema: &Value, documents: &[&str]) -> Vec<Option<String>> {
    judged(schema, "tomllib.loads", documents).await
}

/// The same of documents that this function of Python's reads.
async fn judged(schema: &Value, read: &str, documents: &[&str]) -> Vec<Option<String>> {
    const JUDGE: &str = "import json, sys, tomllib, jsonschema\n\
        told = json.load(sys.stdin)\n\
        judge = jsonschema.Draft202012Validator\n\
        judge.check_schema(told['schema'])\n\
        errors = [next(judge(told['schema']).iter_errors(eval(sys.argv[1])(text)), None) for text in told['documents']]\n\
        print(json.dumps([error and error.message for error in errors]))\n";
    let found = spawn_blocking(|| install("python")).await.unwrap();
    let program = &found["programs"]["psycopg3"];
    let mut python = Command::new(program["argv"][0].as_str().expect("python3, for the schema"));
    for (name, value) in program["env"].as_object().unwrap() {
        python.env(name, value.as_str().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told.json");
    fs::write(&told, json!({ "schema": schema, "documents": documents }).to_string()).unwrap();
    python.args(["-c", JUDGE, read]).stdin(Stdio::from(fs::File::open(told).unwrap()));
    let output = python.output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn schema_takes_what_the_docs_show_and_refuses_what_the_program_refuses() {
    let schema: Value = serde_json::from_slice(&run(&["schema"]).await.stdout).unwrap();
    let examples = examples();
    assert!(examples.len() >= 6, "{:?}", examples.iter().map(|(name, _)| name).collect::<Vec<_>>());
    let documents: Vec<&str> = examples.iter().map(|(_, text)| text.as_str()).collect();
    for ((name, _), verdict) in examples.iter().zip(verdicts(&schema, &documents).await) {
        assert_eq!(verdict, None, "{name}");
    }

    let route = "[[route]]\nupstream = \"postgresql://db/app\"\nvault_path = \"database/creds/db-app\"\n";
    let wrong = [
        ("[listen]\nmax_sesions = 3\n", "listen.max_sesions"),
        ("[listen]\nmax_sessions = 0\n", "listen.max_sessions"),
        ("[listen]\nmax_sessions = \"3\"\n", "listen.max_sessions"),
        ("[listen]\naddresses = \"localhost:5432\"\n", "listen.addresses"),
        ("[listen]\nthreads = 0\n", "listen.threads"),
        ("[listen]\nthreads = \"many\"\n", "listen.threads"),
        ("[drain]\ngrace = \"30\"\n", "drain.grace"),
        ("[drain]\ngrace = 30\n", "drain.grace"),
        ("[drain]\nstrict_exit = \"true\"\n", "drain.strict_exit"),
        ("[http]\naddress = \"localhost\"\n", "http.address"),
        ("[log]\nlevel = \"loud\"\n", "log.level"),
        ("[vault]\naddress = \"vault:8200\"\n", "vault.address"),
        ("[vault.logn]\nrole = \"web\"\n", "vault.logn"),
        ("[route]\nupstream = \"postgresql://db/app\"\n", "route"),
        ("colour = 1\n", "colour"),
    ];
    let documents: Vec<&str> = wrong.iter().map(|(text, _)| *text).collect();
    for ((document, _), verdict) in wrong.iter().zip(verdicts(&schema, &documents).await) {
        assert!(verdict.is_some(), "{document}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (number, (document, key)) in wrong.iter().enumerate() {
        let file: PathBuf = folder.path().join(format!("{number}.toml"));
        let mut all = (*document).to_owned();
        if !document.contains("[route]") {
            let _ = write!(all, "{route}");
        }
        fs::write(&file, all).unwrap();
        let refused = run(&["proxy", "--config-file", &file.display().to_string()]).await;
        assert_eq!(refused.status.code(), Some(2), "{document}");
        let said = text(&refused.stderr);
        assert!(said.lines().any(|line| line.starts_with(key)), "no {key} in\n{said}");
    }
}
