//! Prometheus's own tool on metrics and rules, where it is installed: `make test-monitoring` gets it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub(crate) struct Promtool(PathBuf);

impl Promtool {
    /// `None` where it is not installed, which is said on stderr.
    pub(crate) fn find() -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/monitoring/promtool.py");
        let output = Command::new("python3").arg(script).stdin(Stdio::null()).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        if let Some(program) = found["program"].as_str() {
            return Some(Self(program.into()));
        }
        let line = format!("skipped: monitoring: {}\n", found["missing"].as_str().unwrap());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        None
    }

    pub(crate) fn run(&self, arguments: &[&str], folder: &Path, input: &str) -> Output {
        let mut command = Command::new(&self.0);
        command.args(arguments).current_dir(folder).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may end without having read all of it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
