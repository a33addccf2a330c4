//! The memory limit that the kernel holds this process to, which is the container's, as the files of its control group
//! have it: of version 2, and of version 1.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// In bytes: the lowest of the group and those around it, below `root` as the system's root. `None`: there is none.
pub(super) fn memory_limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let read = |file: &PathBuf| fs::read_to_string(root.join(file)).ok();
    files(&groups).iter().filter_map(read).filter_map(|text| limit(&text)).min()
}

/// Where a limit may stand for a process with this `/proc/self/cgroup` (cgroups(7): `hierarchy:controllers:path`). A
/// container may be told the path that its host knows, and see its own group at the top.
fn files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (top, name) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let below: PathBuf = Path::new(path)
            .components()
            .filter(|component| matches!(component, Component::Normal(_)))
            .collect();
        files.extend(below.ancestors().map(|group| Path::new(top).join(group).join(name)));
    }
    files
}

/// In bytes, as such a file has it.
fn limit(text: &str) -> Option<u64> {
    // Version 2 says `max`, which is no number; version 1 the most that it can count.
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
}

/// Version 1 rounds `i64::MAX` down to a page, whose size is the machine's.
const NO_LIMIT: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn limit_is_a_number_or_none() {
        for (text, expected) in [
            ("67108864\n", Some(64 * MIB)),
            ("0\n", Some(0)),
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("9223372036854710272\n", None),
            ("18446744073709551616\n", None),
            ("-1\n", None),
            ("", None),
        ] {
            assert_eq!(limit(text), expected, "{text:?}");
        }
    }

    #[test]
    fn lowest_limit_on_the_way_up_holds() {
        const V2: &str = "0::/a/b\n";
        const V1: &str = "5:cpuacct,memory:/docker/7f\n4:pids:/docker/7f\n0::/\n";
        for (groups, limits, expected) in [
            (V2, &[][..], None),
            (V2, &[("a/b/memory.max", "67108864\n")], Some(64 * MIB)),
            (V2, &[("a/b/memory.max", "max\n"), ("a/memory.max", "33554432\n")], Some(32 * MIB)),
            (V2, &[("a/b/memory.max", "33554432\n"), ("a/memory.max", "67108864\n")], Some(32 * MIB)),
            (V2, &[("c/memory.max", "33554432\n")], None),
            // A container of its own namespace.
            ("0::/\n", &[("memory.max", "67108864\n")], Some(64 * MIB)),
            // One without, and one that was moved out of it.
            (V2, &[("memory.max", "67108864\n")], Some(64 * MIB)),
            ("0::/../b\n", &[("b/memory.max", "67108864\n")], Some(64 * MIB)),
            (V1, &[("memory/docker/7f/memory.limit_in_bytes", "67108864\n")], Some(64 * MIB)),
            (V1, &[("memory/memory.limit_in_bytes", "67108864\n")], Some(64 * MIB)),
            (V1, &[("memory/memory.limit_in_bytes", "9223372036854771712\n")], None),
            ("", &[("memory.max", "67108864\n")], None),
            ("nonsense\n", &[("memory.max", "67108864\n")], None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let write = |file: &str, text: &str| {
                let file = root.path().join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            };
            write("proc/self/cgroup", groups);
            for (file, text) in limits {
                write(&format!("sys/fs/cgroup/{file}"), text);
            }
            assert_eq!(memory_limit(root.path()), expected, "{groups:?} {limits:?}");
        }
        assert_eq!(memory_limit(Path::new("/nonexistent")), None);
    }
}
