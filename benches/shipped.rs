//! The program as it is shipped: what is measured is what pods run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use rustix::fs::{Advice, fadvise};

/// Where it is, built as the image's when it is first asked for. The one that cargo builds for benches is linked in
/// another way.
pub(crate) static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/build.sh");
    // target/tmp, and what it is in.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let built =
        Command::new(script).env("CARGO_TARGET_DIR", target).stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "deploy/build.sh: {}", built.status);
    let program = PathBuf::from(String::from_utf8(built.stdout).unwrap().trim_end());
    forget(&program);
    program
});

/// So that the kernel reads the file anew, as a node does that has just started: of one that was just written it maps
/// more at once, and how much more differs from copy to copy.
fn forget(program: &Path) {
    let file = File::open(program).unwrap();
    file.sync_all().unwrap();
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
}
