//! Real clients: drivers, pools and tools of every language, as their registries have them.
//!
//! `tests/clients/README.md` is the contract with the programs, `docs/clients.md` what a user is promised. All
//! programs of a language live through the same two rotations and the same lease end, once, whichever of its tests
//! comes first; each test then looks at what its client has said.

mod docs;
mod dump;
mod pool_events;
mod pre_ping;
mod stage;

use crate::support::{env, say_skipped};
use stage::Played;
pub(crate) use stage::install;

/// What a client does, the pool aside, where its driver has an API for everything.
const ALL: &[&str] =
    &["query", "prepared", "transaction", "copy", "notify", "cancel", "error", "big", "ended"];

/// LISTEN belongs to the driver below these.
const WITHOUT_NOTIFY: &[&str] =
    &["query", "prepared", "transaction", "copy", "cancel", "error", "big", "ended"];

/// These drivers have no way to cancel a statement.
const WITHOUT_CANCEL: &[&str] =
    &["query", "prepared", "transaction", "copy", "notify", "error", "big", "ended"];

/// A program, and the steps that it must have done.
type Client = (&'static str, &'static [&'static str]);

macro_rules! clients {
    ($($language:ident { $($client:ident: $steps:expr,)+ })+) => {
        $(mod $language {
            use tokio::sync::OnceCell;

            use super::{Client, Played, assert_passed, stage};

            static PLAYED: OnceCell<Played> = OnceCell::const_new();

            pub(super) const CLIENTS: &[Client] = {
                use super::*;
                &[$((stringify!($client), $steps),)+]
            };

            $(#[tokio::test]
            async fn $client() {
                let played = PLAYED.get_or_init(|| stage::play(stringify!($language), CLIENTS)).await;
                assert_passed(played, stringify!($client));
            })+
        })+

        /// All of them, by language.
        const LANGUAGES: &[(&str, &[Client])] = &[$((stringify!($language), $language::CLIENTS),)+];
    };
}

clients! {
    tools {
        psql: ALL,
    }
    python {
        psycopg3: ALL,
        psycopg2_pool: ALL,
        asyncpg_pool: ALL,
        sqlalchemy_psycopg: WITHOUT_NOTIFY,
        django_pool: WITHOUT_NOTIFY,
    }
    rust {
        tokio_postgres: ALL,
        sqlx: WITHOUT_CANCEL,
        diesel: WITHOUT_CANCEL,
    }
    node {
        node_postgres: ALL,
        postgres_js: ALL,
        drizzle: &["query", "prepared", "transaction", "error", "big", "ended"],
        slonik: &["query", "transaction", "error", "big", "ended"],
    }
    go {
        pgx: ALL,
        lib_pq: ALL,
    }
    java {
        hikari_pgjdbc: ALL,
    }
}

/// Fails with the client's own words; where its toolchain is missing, unless that must be there, says so.
fn assert_passed(played: &Played, client: &str) {
    match played {
        Played::Missing(what) => {
            let is_required = env("PGLEASE_TEST_CLIENTS").is_some_and(|clients| clients == "required");
            assert!(!is_required, "{client}: {what}");
            say_skipped(&format!("clients: {client}"), what);
        }
        Played::Done(outcomes) => {
            if let Err(failure) = &outcomes[client] {
                panic!("{client}: {failure}");
            }
        }
    }
}
