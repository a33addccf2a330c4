//! What `docs/runbook.md` has people look at.

use crate::support::world::{World, WorldOptions};
use crate::{pglease_for, user_of};

const RUNBOOK: &str = include_str!("../../../docs/runbook.md");

/// The statement that begins so.
fn sql(begins: &str) -> String {
    let (_, rest) = RUNBOOK.split_once(&format!("```sql\n{begins}")).expect("the runbook has it");
    format!("{begins}{}", rest.split_once("```").unwrap().0)
}

#[tokio::test]
async fn sql_of_the_runbook_shows_the_role_and_what_it_owns() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let user = user_of(&session).await;

    // Roles of this world have a prefix of their own.
    let sql = |begins: &str| sql(begins).replace("'v-%'", &format!("'{}%'", world.role_prefix()));
    let roles = world.superuser.rows(&sql("SELECT rolname, rolcanlogin")).await;
    let role = roles.iter().find(|row| row[0].as_deref() == Some(&user)).expect("the role is shown");
    // Can log in, and is valid.
    assert_eq!((role[1].as_deref(), role[3].as_deref()), (Some("t"), Some("t")), "{role:?}");

    let owned = async || {
        let rows = world.superuser.rows(&sql("SELECT r.rolname, d.deptype")).await;
        rows.into_iter().filter(|row| row[0].as_deref() == Some(&user)).collect::<Vec<_>>()
    };
    assert!(owned().await.is_empty(), "{:?}", owned().await);
    session.batch_execute("CREATE TABLE owned ()").await.unwrap();
    let rows = owned().await;
    let kinds: Vec<_> = rows.iter().map(|row| (row[1].as_deref(), row[2].as_deref())).collect();
    assert!(kinds.contains(&(Some("o"), Some("pg_class"))), "{kinds:?}");

    // The cure, while nobody uses the role.
    drop(session);
    let cure = RUNBOOK.split('`').find(|span| span.starts_with("REASSIGN OWNED BY")).unwrap();
    let (reassign, _) = cure.split_once(" DROP ROLE").unwrap();
    let reassign = reassign.replace("v-…", &user).replace("app_owner", &world.group("app_owner"));
    world.superuser.batch_execute(&reassign).await.unwrap();
    assert!(owned().await.is_empty(), "{:?}", owned().await);
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'owned'";
    assert_eq!(world.superuser.rows(owner).await[0][0].as_deref(), Some(&*world.group("app_owner")));
}
