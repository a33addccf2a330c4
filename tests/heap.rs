//! Memory that is not used any more goes back to the system. In a process of its own: nobody else allocates there.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;

/// Of this process, in KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn burst_leaves_nothing_behind_though_what_it_made_last_stays() {
    let before = resident();
    let mut burst: Vec<Vec<u8>> = (0..8192).map(|_| vec![1; 4000]).collect();
    let stays = burst.pop();
    let peak = resident();
    assert!(peak >= before + 30_000, "{before} KiB before, {peak} KiB at the peak");
    drop(burst);
    assert!(pglease_heap::give_back());
    let after = resident();
    assert!(after < before + 2_000, "{before} KiB before, {peak} KiB at the peak, {after} KiB afterwards");
    drop(stays);
}
