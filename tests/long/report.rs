//! Figures for people: printed, and kept in `target/long`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::load::Took;

/// Prints `text` and writes it to `target/long/NAME.txt`.
#[expect(clippy::print_stdout, reason = "seen with --nocapture")]
pub(crate) fn report(name: &str, text: &str) {
    println!("{name}: {text}");
    // target/tmp, and what is beside it.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("long");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name).with_extension("txt"), format!("{name}: {text}\n")).unwrap();
}

/// The time that `share` of them took at most.
pub(crate) fn quantile<'a>(took: impl IntoIterator<Item = &'a Took>, share: f64) -> Duration {
    let mut times: Vec<_> = took.into_iter().map(|took| took.took).collect();
    times.sort_unstable();
    let rank = Duration::from_secs(times.len() as u64).mul_f64(share).as_secs();
    times.get(usize::try_from(rank).unwrap()).or(times.last()).copied().unwrap_or_default()
}
