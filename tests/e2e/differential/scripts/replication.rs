//! Commands of the replication protocol, as far as they answer alike twice.

use crate::differential::say::{copy_done, parse, query, sync, terminate, unnamed};
use crate::differential::script::{Names, Script};

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let physical =
        |name: &str| Script::session_with(format!("physical: {name}"), names, &[("replication", "true")]);
    let logical =
        |name: &str| Script::session_with(format!("logical: {name}"), names, &[("replication", "database")]);
    let statements = [
        "IDENTIFY_SYSTEM",
        "IDENTIFY_SYSTEM; IDENTIFY_SYSTEM",
        "identify_system",
        "SHOW wal_segment_size",
        "SHOW nothing_such",
        "SELECT 1",
        "BOGUS",
        "",
        "TIMELINE_HISTORY 99",
        "TIMELINE_HISTORY 0",
        "START_REPLICATION",
        "START_REPLICATION 0/0",
        "START_REPLICATION FF/0 TIMELINE 1",
        "START_REPLICATION 0/0 TIMELINE 99",
        "START_REPLICATION SLOT \"nowhere\" PHYSICAL 0/0",
        "START_REPLICATION SLOT \"nowhere\" LOGICAL 0/0",
        "CREATE_REPLICATION_SLOT \"Bad Name\" TEMPORARY PHYSICAL",
        "CREATE_REPLICATION_SLOT bad TEMPORARY LOGICAL nowhere",
        "DROP_REPLICATION_SLOT nowhere",
        "BASE_BACKUP BOGUS",
        "BASE_BACKUP (BOGUS)",
        "BEGIN",
        "SET application_name = 'walsender'",
    ];
    // Behind one that starts to stream a Query is a fault.
    let each = statements.into_iter().flat_map(|sql| {
        [physical(sql), logical(sql)].map(|script| script.query(sql).query("IDENTIFY_SYSTEM").alone())
    });
    let more = [
        physical("extended query").ask([unnamed("SELECT 1", &[]), sync()].concat()).query("IDENTIFY_SYSTEM"),
        physical("Parse").ask([parse("", "IDENTIFY_SYSTEM", &[]), sync()].concat()).query("IDENTIFY_SYSTEM"),
        physical("Terminate").send(terminate()).end(),
        physical("pg_terminate_backend").superuser("SELECT pg_terminate_backend({0})").end(),
        physical("temporary slot")
            .query("CREATE_REPLICATION_SLOT of_a_script TEMPORARY PHYSICAL")
            .query("CREATE_REPLICATION_SLOT of_a_script TEMPORARY PHYSICAL")
            .query("DROP_REPLICATION_SLOT of_a_script")
            .query("IDENTIFY_SYSTEM"),
        logical("several statements")
            .query("SELECT 1; SELECT 2")
            .query("BEGIN; SELECT 1/0; COMMIT")
            .query("ROLLBACK"),
        logical("COPY").query("COPY (SELECT 1) TO STDOUT"),
        logical("extended query").ask([unnamed("SELECT 1", &[]), sync()].concat()).query("SELECT 1"),
        logical("query and command")
            .query("SELECT 1")
            .query("IDENTIFY_SYSTEM")
            .query("SELECT 1/0")
            .query("IDENTIFY_SYSTEM"),
        // Starts at a place that nothing was written at yet, and is ended by the client.
        physical("COPY both, ended by the client")
            .send(query("START_REPLICATION 0/0 TIMELINE 1"))
            .until(b'E'),
        physical("CopyDone without COPY both")
            .send([copy_done(), query("IDENTIFY_SYSTEM")].concat())
            .ready(1),
    ];
    each.chain(more).collect()
}
