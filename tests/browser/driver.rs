//! Chromium by `WebDriver`: what of it the tests need.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::support::process::{Folder, Process, Spawn};
use crate::support::{env, http_client, say_skipped};

/// One browser. Ends with it.
pub(crate) struct Browser {
    _driver: Process,
    _profile: Folder,
    client: reqwest::Client,
    /// Of its session at the driver.
    url: String,
    pid: Pid,
}

impl Browser {
    /// `None` where there is no browser on this machine, and that is no fault.
    pub(crate) async fn start() -> Option<Self> {
        let Some(driver) = installed("chromedriver") else {
            let how = "apt-get install -y --no-install-recommends chromium chromium-driver";
            assert!(env("PGLEASE_TEST_BROWSER").as_deref() != Some("required"), "no chromedriver: {how}");
            say_skipped("the page in a browser", how);
            return None;
        };
        let profile = Folder::create(None);
        let home = profile.path().to_str().unwrap();
        let spawn = Spawn {
            program: &driver,
            arguments: &["--port=0".to_owned()],
            environment: &[("HOME", home), ("PATH", "/usr/bin:/bin"), ("TMPDIR", home)],
            folder: profile.path(),
            uid: None,
            stop: Signal::TERM,
        };
        let process = Process::spawn(&spawn);
        let said = |lines: &[String]| {
            let port = |line: &String| {
                let (_, rest) = line.split_once("started successfully on port ")?;
                rest.trim_end_matches('.').parse::<u16>().ok()
            };
            lines.iter().find_map(port)
        };
        let port = process.lines().wait_for(PATIENCE, said).await;
        let port = port.unwrap_or_else(|| panic!("chromedriver says no port:\n{}", process.lines().tail()));

        let client = http_client();
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &format!("--user-data-dir={home}/profile"),
        ];
        let capabilities = json!({ "alwaysMatch": {
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL" },
        }});
        let begin = format!("http://127.0.0.1:{port}/session");
        let session = call(&client, &begin, Some(json!({ "capabilities": capabilities }))).await;
        let id = session["sessionId"].as_str().unwrap();
        let pid = session["capabilities"]["goog:processID"].as_i64().unwrap();
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        Some(Self { url: format!("{begin}/{id}"), _driver: process, _profile: profile, client, pid })
    }

    /// So wide, as a phone or a desk, in this scheme of colours.
    pub(crate) async fn look(&self, width: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    pub(crate) async fn go(&self, url: &str) {
        self.call("url", json!({ "url": url })).await;
    }

    /// What the body of a function gives.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.call("execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// What the page or the browser has complained of since the last call.
    pub(crate) async fn complaints(&self) -> Vec<Value> {
        let said = self.call("se/log", json!({ "type": "browser" })).await;
        said.as_array().unwrap().clone()
    }

    /// Has the page without scripts from the next one on, or with them.
    pub(crate) async fn scripts(&self, are_on: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": !are_on })).await;
    }

    /// The whole page, as a picture in `target/browser`.
    pub(crate) async fn picture(&self, name: &str) {
        let options = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.devtools("Page.captureScreenshot", options).await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/browser");
        fs::create_dir_all(&folder).unwrap();
        let picture = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.call("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn call(&self, path: &str, body: Value) -> Value {
        call(&self.client, &format!("{}/{path}", self.url), Some(body)).await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Gone already, if all went well with the driver.
        let _ = kill_process(self.pid, Signal::KILL);
    }
}

async fn call(client: &reqwest::Client, url: &str, body: Option<Value>) -> Value {
    let request = client.post(url).timeout(PATIENCE * 2).json(&body.unwrap_or_else(|| json!({})));
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert!(answer["value"].get("error").is_none(), "{url}: {answer}");
    answer["value"].clone()
}

fn installed(program: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/local/bin"].map(|folder| Path::new(folder).join(program));
    folders.into_iter().find(|path| path.exists())
}

/// Between looks at a page that changes by itself.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
