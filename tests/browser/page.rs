//! `/` of a real pglease.

use serde_json::Value;
use tokio::time;
use tokio_postgres::Config;

use crate::driver::{Browser, PAUSE};
use crate::looks::sound;
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_for, rotate, start, until};

const HOSTILE: &str = "</td><script>document.title='taken'</script><img src=x>";

async fn session(pglease: &Pglease, application_name: &str) -> Database {
    let mut config = Config::new();
    config
        .host("localhost")
        .port(pglease.port())
        .dbname("app")
        .user("app")
        .application_name(application_name);
    Database::open(&config).await.unwrap()
}

#[tokio::test]
async fn page_is_sound_on_a_phone_and_on_a_desk_light_and_dark() {
    let Some(browser) = Browser::start().await else { return };
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let (_hostile, in_transaction) = (session(&pglease, HOSTILE).await, session(&pglease, "web").await);
    in_transaction.batch_execute("BEGIN; INSERT INTO t VALUES (1001)").await.unwrap();
    rotate(&pglease, &[]).await;
    let _others = [session(&pglease, "worker").await, session(&pglease, "").await];
    until(async || pglease.status().await["sessions"]["states"]["idle"] == 3).await;

    let url = format!("http://{}/", pglease.admin());
    let mut backgrounds = Vec::new();
    for width in [390, 1280] {
        for scheme in ["light", "dark"] {
            let of = format!("page-{width}-{scheme}");
            browser.look(width, scheme).await;
            // What a slow machine has let wait is told of until it is done.
            let mut seen = Value::Null;
            until(async || {
                browser.go(&url).await;
                seen = sound(&browser, &of).await;
                seen["finding"].as_str().unwrap().starts_with("All is well")
            })
            .await;
            browser.picture(&of).await;
            backgrounds.push(seen["background"].as_str().unwrap().to_owned());
            // Two generations, lease and token of each.
            let bars = seen["bars"].as_array().unwrap();
            assert_eq!(bars.len(), 4, "{of}: {bars:?}");
            for bar in bars {
                let whole = bar["filled"].as_f64().unwrap();
                assert!((0.9..=1.0).contains(&whole) && bar["height"].as_f64() > Some(4.0), "{of}: {bar}");
                assert!(bar["says"].as_str().unwrap().contains(" of "), "{of}: {bar}");
            }
            assert_eq!(
                seen["applications"],
                serde_json::json!([HOSTILE.get(..63).unwrap_or(HOSTILE), "web", "worker", ""]),
                "{of}"
            );
            assert_ne!(seen["title"], "taken");
        }
    }
    assert_eq!((&backgrounds[0], &backgrounds[1]), (&backgrounds[2], &backgrounds[3]));
    assert_ne!(backgrounds[0], backgrounds[1], "dark is another page than light");
}

#[tokio::test]
async fn page_refreshes_itself_and_says_when_pglease_is_gone() {
    let Some(browser) = Browser::start().await else { return };
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    browser.look(1280, "light").await;
    browser.go(&format!("http://{}/", pglease.admin())).await;
    assert_eq!(sound(&browser, "before").await["applications"], serde_json::json!([]));

    let _session = session(&pglease, "come later").await;
    let shown = "return document.querySelector('main').innerText.includes('come later')";
    until_true(&browser, shown).await;
    sound(&browser, "refreshed").await;

    pglease.kill();
    until_true(&browser, "return !document.querySelector('.gone').hidden").await;
}

#[tokio::test]
async fn page_says_all_without_its_script() {
    let Some(browser) = Browser::start().await else { return };
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let _session = session(&pglease, "seen").await;
    browser.look(390, "light").await;
    let url = format!("http://{}/", pglease.admin());
    // The page may load itself again between the two, and is one with scripts then.
    until(async || {
        browser.scripts(false).await;
        browser.go(&url).await;
        browser.scripts(true).await;
        let says_all = "return document.querySelector('meta[http-equiv=refresh]') !== null
            && document.querySelector('main').innerText.includes('seen')";
        browser.run(says_all).await == Value::Bool(true)
    })
    .await;
    browser.scripts(false).await;
    browser.go(&url).await;
    browser.picture("page-without-script").await;
}

#[tokio::test]
async fn page_names_vault_where_nobody_listens_at_its_address() {
    let Some(browser) = Browser::start().await else { return };
    let world = World::shared(WorldOptions::default()).await;
    // A port that needs rights to listen on, and that nobody has.
    let settings =
        world.settings_with("info", "http://127.0.0.1:1", "connect_wait = \"1m\"") + &world.route("db-app");
    let pglease = start(&settings).await;
    until(async || pglease.status().await["verdict"][0]["severity"] == "error").await;
    for (width, scheme) in [(390, "dark"), (1280, "light")] {
        let of = format!("fault-{width}-{scheme}");
        browser.look(width, scheme).await;
        browser.go(&format!("http://{}/", pglease.admin())).await;
        let seen = sound(&browser, &of).await;
        browser.picture(&of).await;
        let finding = seen["finding"].as_str().unwrap();
        assert!(finding.starts_with("Vault: at fault") && finding.contains("Nobody listened"), "{finding}");
        assert!(seen["title"].as_str().unwrap().starts_with("Vault: at fault"), "{seen}");
    }
}

async fn until_true(browser: &Browser, script: &str) {
    let polled = async {
        while browser.run(script).await != Value::Bool(true) {
            time::sleep(PAUSE).await;
        }
    };
    let is_true = time::timeout(PATIENCE, polled).await.is_ok();
    assert!(is_true, "{script} does not come true");
}
