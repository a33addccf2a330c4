//! The command that the README begins with.

use std::process::Stdio;

use tokio::process::Command;
use tokio::time;

use crate::steps::PATIENCE;

#[tokio::test]
async fn demo_of_the_readme_fails_no_query_and_leaves_no_role() {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "demo"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // Of the make that may have started this.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let output = make.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = time::timeout(PATIENCE * 3, output).await.expect("it ends").expect("make");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let last = said.lines().last().unwrap_or_default();
    let is_as_said = last.starts_with("demo: ")
        && last.contains(" queries, 0 failed, ")
        && last.ends_with(" 0 roles left");
    assert!(is_as_said, "{last}");
}
