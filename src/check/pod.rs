//! The pod: whether what it gives is enough for the settings.

mod control_group;

use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::fault::{Fault, Warning};
use super::name::Name;
use super::report::{Found, Recorder};
use crate::config::{
    Config, ListenConfig, PodConfig, RouteConfig, memory_mib, needed_descriptors, sessions_within,
};

/// Looks at the limits of this process, which are those of its container, and at what Kubernetes has told.
pub(super) async fn check(config: &Config, record: &Recorder) {
    let Config { listen: ListenConfig { max_sessions, threads, .. }, routes, drain, pod, .. } = config;
    let PodConfig { memory_limit, termination_grace, .. } = pod;
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    record.step(Name::PodDescriptors, "", async { descriptors(*max_sessions, *threads, routes, hard) }).await;
    let memory = async { memory(*max_sessions, *memory_limit, control_group::memory_limit(Path::new("/"))) };
    record.step(Name::PodMemory, "", memory).await;
    record.step(Name::PodDeadline, "", async { deadline(drain.deadline, *termination_grace) }).await;
}

/// The proxy raises its limit as far as it may, and lowers `max_sessions` where that is not enough.
fn descriptors(max_sessions: usize, threads: usize, routes: &[RouteConfig], hard: u64) -> Found {
    let needed = needed_descriptors(max_sessions, threads, routes);
    if needed <= hard {
        return Found::fine(format!(
            "{needed} open files for listen.max_sessions = {max_sessions} can be had"
        ));
    }
    let within = sessions_within(hard, threads, routes);
    Found::warning(
        Warning::FewDescriptors,
        format!("{needed} open files for listen.max_sessions = {max_sessions}, and {hard} can be had"),
        format!("pglease serves {within} sessions at the same time instead"),
        format!(
            "set listen.max_sessions = {within}, or raise the hard limit to {needed} (LimitNOFILE= of the container \
             runtime, ulimit -Hn)"
        ),
    )
}

/// The lower holds: of what the pod is `told` to have, and of what the `kernel` kills at.
fn memory(max_sessions: usize, told: Option<u64>, kernel: Option<u64>) -> Found {
    let told = told.map(|limit| (limit, "pod.memory_limit"));
    let kernel = kernel.map(|limit| (limit, "of the control group"));
    let Some((limit, whose)) = told.into_iter().chain(kernel).min_by_key(|(limit, _)| *limit) else {
        return Found::fine("no limit is told (pod.memory_limit), and the control group has none");
    };
    let (needed, limit_mib) = (memory_mib(max_sessions), limit / MIB);
    if u64::try_from(needed).is_ok_and(|needed| needed <= limit_mib) {
        return Found::fine(format!(
            "{needed} MiB for listen.max_sessions = {max_sessions}, of {limit_mib} MiB ({whose})"
        ));
    }
    Found::warning(
        Warning::LittleMemory,
        format!(
            "up to {needed} MiB for listen.max_sessions = {max_sessions}, and the limit is {limit_mib} MiB ({whose})"
        ),
        "with so many busy sessions the kernel kills pglease, and every session with it",
        format!(
            "set the container's limit to {needed}Mi (annotation pglease.dev/resources-memory-limit), or lower \
             listen.max_sessions (annotation pglease.dev/max-sessions)"
        ),
    )
}

fn deadline(deadline: Duration, grace: Option<Duration>) -> Found {
    let Some(grace) = grace else {
        return Found::fine("no termination grace is told (pod.termination_grace)");
    };
    let said = |span: Duration| humantime::format_duration(span).to_string();
    let found = format!("drain.deadline {}, terminationGracePeriodSeconds {}", said(deadline), said(grace));
    let cure = |deadline: Duration| {
        format!(
            "set drain.deadline = \"{}\" or less (annotation pglease.dev/drain-deadline), or raise the pod's \
             terminationGracePeriodSeconds to {}",
            said(deadline),
            (deadline.max(grace) + REVOCATION).as_secs()
        )
    };
    let room = grace.saturating_sub(REVOCATION);
    if deadline >= grace {
        let cause = "Kubernetes kills pglease before it has revoked its leases";
        return Found::fault(Fault::DeadlinePastGrace, found, cause, cure(room));
    }
    if deadline > room {
        let cause = "revocation takes up to 5 s behind the deadline, and Kubernetes may kill pglease in the middle of it";
        return Found::warning(Warning::DeadlineNearGrace, found, cause, cure(room));
    }
    Found::fine(found)
}

const MIB: u64 = 1 << 20;

/// All revocations together take so long at most.
const REVOCATION: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::report::{Class, Outcome};
    use super::*;

    #[test]
    fn limits_are_held_against_what_the_sessions_need() {
        for (sessions, threads, hard, outcome) in [
            (1000, 1, 2300, Outcome::Passed),
            (1000, 1, 2299, Outcome::Warning),
            (1000, 3, 2308, Outcome::Passed),
            (1000, 3, 2307, Outcome::Warning),
            (1000, 64, u64::MAX, Outcome::Passed),
            (1, 1, 10, Outcome::Warning),
        ] {
            let found = descriptors(sessions, threads, &[], hard);
            assert_eq!(found.outcome(), outcome, "{sessions} {threads} {hard}");
        }
        assert!(descriptors(1000, 1, &[], 500).cure().unwrap().contains("listen.max_sessions = 100,"));
        let (enough, little) = (Some(157 * MIB), Some(156 * MIB));
        for (told, kernel, outcome, whose) in [
            (None, None, Outcome::Passed, "has none"),
            (enough, None, Outcome::Passed, "(pod.memory_limit)"),
            (little, None, Outcome::Warning, "(pod.memory_limit)"),
            (None, enough, Outcome::Passed, "(of the control group)"),
            (None, little, Outcome::Warning, "(of the control group)"),
            (enough, little, Outcome::Warning, "(of the control group)"),
            (little, enough, Outcome::Warning, "(pod.memory_limit)"),
        ] {
            let found = memory(1000, told, kernel);
            assert_eq!(found.outcome(), outcome, "{told:?} {kernel:?}");
            assert!(found.found().ends_with(whose), "{found:?}");
        }
    }

    #[test]
    fn deadline_leaves_room_for_revocation_within_the_grace() {
        let failed = Outcome::Failed(Class::Configuration);
        for (seconds, grace, outcome) in [
            (20, None, Outcome::Passed),
            (20, Some(30), Outcome::Passed),
            (25, Some(30), Outcome::Passed),
            (26, Some(30), Outcome::Warning),
            (30, Some(30), failed),
            (40, Some(30), failed),
        ] {
            let found = deadline(Duration::from_secs(seconds), grace.map(Duration::from_secs));
            assert_eq!(found.outcome(), outcome, "{seconds} {grace:?}");
        }
        let cure = deadline(Duration::from_secs(30), Some(Duration::from_secs(30)));
        assert!(cure.cure().unwrap().contains("drain.deadline = \"25s\""));
    }
}
