//! Chromium without a window, driven by its DevTools protocol.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

/// How long anything may take: a browser on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between looks at a condition.
const PAUSE: Duration = Duration::from_millis(50);

/// A page in a browser.
pub(crate) struct Browser {
    _child: Child,
    _profile: TempDir,
    socket: WebSocketStream<TcpStream>,
    session: Option<String>,
    next: u64,
    /// What the page's scripts threw, and what the browser complained of.
    pub(crate) complaints: Vec<String>,
}

impl Browser {
    /// Starts it with a page at this address.
    pub(crate) async fn open(url: &str) -> Self {
        let profile = TempDir::new().unwrap();
        let mut child = Command::new("chromium")
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
            ])
            .args([
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("HOME", profile.path())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium cannot be run; .ci/install-test-programs installs it");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = timeout(PATIENCE, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromium ended");
                if let Some(address) = line.strip_prefix("DevTools listening on ") {
                    return address.to_owned();
                }
            }
        });
        let address = address.await.expect("chromium said no address");
        // Read on: it must not wait for whoever reads its complaints.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let host = address.trim_start_matches("ws://").split('/').next().unwrap();
        let stream = TcpStream::connect(host).await.unwrap();
        let (socket, _) = client_async(&address, stream).await.unwrap();
        let mut browser = Self {
            _child: child,
            _profile: profile,
            socket,
            session: None,
            next: 0,
            complaints: Vec::new(),
        };
        let target = browser
            .call("Target.createTarget", json!({ "url": "about:blank" }))
            .await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.size(1440, 900).await;
        browser.go(url).await;
        browser
    }

    /// Goes to another address.
    pub(crate) async fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
        self.until("document.readyState === 'complete'").await;
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.socket
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
        let answer = async {
            loop {
                let message = self.socket.next().await.expect("chromium ended").unwrap();
                let Ok(text) = message.to_text() else { continue };
                let Ok(value) = serde_json::from_str::<Value>(text) else {
                    continue;
                };
                match value["method"].as_str() {
                    Some("Runtime.exceptionThrown") => {
                        self.complaints
                            .push(value["params"]["exceptionDetails"].to_string());
                    }
                    Some("Log.entryAdded") if value["params"]["entry"]["level"] == "error" => {
                        self.complaints.push(value["params"]["entry"].to_string());
                    }
                    Some("Page.javascriptDialogOpening") => self.complaints.push("a dialog".to_owned()),
                    _ => {}
                }
                if value["id"] == id {
                    return value;
                }
            }
        };
        let answer = timeout(PATIENCE, answer)
            .await
            .unwrap_or_else(|_| panic!("{method}: no answer"));
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// What an expression is.
    pub(crate) async fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params).await;
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// The text of what a selector finds first.
    pub(crate) async fn text(&mut self, selector: &str) -> String {
        let text = self
            .eval(&format!(
                "document.querySelector({})?.textContent",
                json!(selector)
            ))
            .await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.eval(&format!("Boolean({expression})")).await != true {
            assert!(
                Instant::now() < deadline,
                "never: {expression}; complaints {:?}",
                self.complaints
            );
            sleep(PAUSE).await;
        }
    }

    /// Presses a key: `Enter`, `ArrowRight`, or a character.
    pub(crate) async fn press(&mut self, key: &str) {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        let text = match key {
            "Enter" => "\r",
            one if one.chars().count() == 1 => one,
            _ => "",
        };
        let mut down = json!({ "type": "keyDown", "key": key, "windowsVirtualKeyCode": code });
        if !text.is_empty() {
            down["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", down).await;
        let up = json!({ "type": "keyUp", "key": key, "windowsVirtualKeyCode": code });
        self.call("Input.dispatchKeyEvent", up).await;
    }

    /// Clicks into the middle of what an expression finds, as a mouse does; of a line, on its middle.
    pub(crate) async fn click(&mut self, expression: &str) {
        let at = self
            .eval(&format!(
                "(() => {{ const e = {expression}; e.scrollIntoView({{ block: 'nearest', inline: 'nearest' }});
                 const line = e.querySelector('path.line');
                 if (line) {{ const p = line.getPointAtLength(line.getTotalLength() / 2).matrixTransform(line.getScreenCTM());
                   return [p.x, p.y]; }}
                 const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
            ))
            .await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Moves the pointer to where nothing is.
    pub(crate) async fn leave(&mut self) {
        let event = json!({ "type": "mouseMoved", "x": 500, "y": 450 });
        self.call("Input.dispatchMouseEvent", event).await;
    }

    /// What the system prefers.
    pub(crate) async fn prefer(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }))
            .await;
    }

    /// The size of the window.
    pub(crate) async fn size(&mut self, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", params).await;
    }

    /// Keeps a picture beside the build, for people to look at.
    pub(crate) async fn picture(&mut self, name: &str) {
        let result = self
            .call("Page.captureScreenshot", json!({ "format": "png" }))
            .await;
        let bytes = STANDARD.decode(result["data"].as_str().unwrap()).unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("map");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name).with_extension("png"), bytes).unwrap();
    }
}
