//! The page in a browser.

use serde_json::json;
use weir_hubble::map::{Access, Map};

use crate::{
    browser::Browser,
    flows::{connect, flow, refuse, shop},
    served,
};

const NODES: &str =
    "[...document.querySelectorAll('.node:not(.folded) text:first-of-type')].map(e => e.textContent).sort()";

async fn page(fill: impl FnOnce(&Map)) -> Browser {
    let (address, _) = served(Access::open(), fill).await;
    let mut browser = Browser::open(&format!("http://{address}/")).await;
    browser.until("document.querySelector('.node')").await;
    browser
}

fn edge(from: &str, to: &str) -> String {
    format!(
        "document.querySelector('[data-edge={}]')",
        json!(format!("{from} {to}"))
    )
}

#[tokio::test]
async fn the_graph_shows_what_flows_said_and_a_click_the_last_of_them() {
    let mut browser = page(shop).await;
    let nodes = browser.eval(NODES).await;
    let expected = [
        "192.0.2.7",
        "203.0.113.9",
        "cart",
        "catalog",
        "gateway",
        "payments",
        "postgres",
        "prometheus",
        "redis",
        "web",
    ];
    assert_eq!(nodes, json!(expected));
    for (from, to, kind) in [
        ("edge/gateway", "shop/web", "mtls"),
        ("shop/web", "shop/cart", "direct"),
        ("192.0.2.7", "edge/gateway", "plaintext"),
        ("shop/catalog", "pay/payments", "failing"),
    ] {
        let edge = edge(from, to);
        assert_eq!(
            browser
                .eval(&format!("{edge}.classList.contains('{kind}')"))
                .await,
            true,
            "{from} to {to}"
        );
    }
    // Kinds differ without colours, too, and thickness tells the rate.
    let dash = |kind: &str| {
        format!("getComputedStyle(document.querySelector('.edge.{kind} .line')).strokeDasharray")
    };
    let mut dashes = Vec::new();
    for kind in ["mtls", "direct", "plaintext", "failing"] {
        let pattern = browser.eval(&dash(kind)).await;
        assert!(!dashes.contains(&pattern), "{kind}: {pattern}");
        dashes.push(pattern);
    }
    let width = |from, to| {
        format!(
            "+{}.querySelector('.line').getAttribute('stroke-width')",
            edge(from, to)
        )
    };
    let busier = format!(
        "{} > {}",
        width("shop/cart", "data/redis"),
        width("shop/web", "pay/payments")
    );
    assert_eq!(browser.eval(&busier).await, true);
    // Clients stand left of their servers.
    let left = "['gateway', 'web', 'cart', 'redis'].map(name => [...document.querySelectorAll('.node')]
        .find(e => e.querySelector('text').textContent === name).getBoundingClientRect().x)";
    let left: Vec<f64> = serde_json::from_value(browser.eval(left).await).unwrap();
    assert!(left.is_sorted_by(|one, other| one < other), "{left:?}");
    browser.picture("shop-light").await;

    browser.click(&edge("shop/catalog", "pay/payments")).await;
    browser.until("document.querySelector('#ask pre')").await;
    assert_eq!(browser.text("#details h2").await, "shop/catalog → pay/payments");
    let command = "weir explain --from shop/catalog-0 --to pay/payments-0 --port 8080";
    assert_eq!(browser.text("#ask pre").await, command);
    let flows = browser.text("#flows").await;
    for part in ["denied", "not_allowed", "process curl", "by shop/payments"] {
        assert!(flows.contains(part), "no {part} in {flows}");
    }
    assert!(browser.text("#details dl").await.contains("2 denied, 0 failed"));
    browser.picture("shop-edge").await;
    let seen = "[...document.querySelectorAll('.node')].find(e => e.textContent === 'payments').getBoundingClientRect().right
        <= document.querySelector('#details').getBoundingClientRect().left";
    browser.until(seen).await;
    browser.size(1680, 640).await;
    browser
        .until("document.querySelector('#map').scrollWidth <= document.querySelector('#map').clientWidth")
        .await;
    browser.leave().await;
    browser.until("document.querySelector('#tip').hidden").await;
    browser.picture("readme").await;
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[tokio::test]
async fn names_that_come_from_pods_do_nothing_and_are_shown() {
    let script = "<script>window.hacked=1</script>";
    let image = "\"'><img src=x onerror=window.hacked=1>";
    let acting = "\u{1b}[2J\u{202e}gpj.exe";
    let mut browser = page(|map| {
        for (from, to) in [(script, image), (acting, script), ("web", "';alert(1);'")] {
            connect(map, &format!("a/{from}"), &format!("{image}/{to}"), "tunnel", 2);
            let more = json!({
                "verdict": "failed", "reason": "io", "detail": script, "service": format!("a/{script}"),
                "process": { "pid": 1, "name": acting }, "policy": { "policy": format!("a/{image}") },
            });
            let refused = flow(
                &format!("a/{from}"),
                &format!("{image}/{to}"),
                "refused",
                "nowhere",
                more,
            );
            map.take(refused);
        }
    })
    .await;
    let nodes = browser.eval(NODES).await.to_string();
    assert!(nodes.contains("<script>"), "{nodes}");
    assert!(nodes.contains(r"\\u{1b}[2J\\u{202e}"), "{nodes}");
    for number in 0..3 {
        browser
            .click(&format!("document.querySelectorAll('.edge')[{number}]"))
            .await;
        browser.until("document.querySelector('#flows .failing')").await;
        assert!(
            browser
                .text("#flows")
                .await
                .contains(r"process \u{1b}[2J\u{202e}gpj.exe")
        );
        let command = browser.text("#ask").await;
        let is_quoted = command.contains("--to 'svc/a/<script>window.hacked=1</script>'");
        assert!(is_quoted || command.contains("cannot be typed"), "{command}");
        browser.press("Escape").await;
    }
    browser.click("document.querySelector('#view')").await;
    browser
        .until("document.querySelectorAll('#rows tr').length === 3")
        .await;
    browser.click("document.querySelector('#rows button')").await;
    browser.until("!document.querySelector('#details').hidden").await;
    let whole = browser
        .eval("document.documentElement.textContent")
        .await
        .to_string();
    assert!(
        !whole.contains('\u{202e}') && !whole.contains(r"\u001b"),
        "{whole}"
    );
    let others = "document.querySelectorAll('img, iframe, script:not([src=\"map.js\"]), [onerror]').length";
    assert_eq!(browser.eval(others).await, 0);
    assert_eq!(browser.eval("typeof window.hacked").await, "undefined");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[tokio::test]
async fn everything_can_be_done_by_keyboard() {
    let mut browser = page(shop).await;
    let focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id";
    browser.press("/").await;
    assert_eq!(browser.eval("document.activeElement.id").await, "search");
    for key in ["r", "e", "d", "i"] {
        browser.press(key).await;
    }
    browser
        .until("document.querySelectorAll('.node:not(.aside)').length === 1")
        .await;
    browser.press("Escape").await;
    browser
        .until("document.querySelectorAll('.node.aside').length === 0")
        .await;
    // One stop for the graph, from which arrows lead on.
    assert_eq!(
        browser
            .eval("document.querySelectorAll('#graph [tabindex=\"0\"]').length")
            .await,
        1
    );
    browser.press("Enter").await;
    let first = browser.eval(focused).await.to_string();
    assert!(first.contains("namespace"), "{first}");
    for _ in 0..12 {
        if browser.eval(focused).await.to_string().contains("shop/web,") {
            break;
        }
        browser.press("ArrowRight").await;
    }
    browser.press("ArrowDown").await;
    browser.press("ArrowLeft").await;
    let label = browser.eval(focused).await;
    assert!(
        label
            .as_str()
            .is_some_and(|label| label.contains("connections/s")),
        "{label}"
    );
    let outline = browser
        .eval("getComputedStyle(document.activeElement.querySelector('.body')).strokeWidth")
        .await;
    assert_eq!(outline, "3px");
    browser.picture("shop-focus").await;
    browser.press("Enter").await;
    browser.until("!document.querySelector('#details').hidden").await;
    assert_eq!(browser.eval("document.activeElement.id").await, "details");
    browser.press("Escape").await;
    browser.until("document.querySelector('#details').hidden").await;
    assert_eq!(browser.eval(focused).await, label, "the focus is where it was");
    // A namespace folds, and its node unfolds it.
    browser
        .eval("document.querySelector('[aria-label^=\"namespace shop\"]').focus()")
        .await;
    browser.press("Enter").await;
    browser
        .until("document.activeElement.classList.contains('folded')")
        .await;
    let sub = browser
        .eval("document.activeElement.querySelector('.sub').textContent")
        .await;
    assert_eq!(sub, "3 workloads");
    browser.press("Enter").await;
    browser
        .until("document.activeElement.classList.contains('namespace')")
        .await;
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_not_looked_for_is_left_out_and_the_table_says_the_same() {
    let mut browser = page(shop).await;
    let edges = "document.querySelectorAll('.edge').length";
    assert_eq!(browser.eval(edges).await, 13 - 1);
    for (id, left) in [("failing", 1), ("plaintext", 3)] {
        browser.click(&format!("document.querySelector('#{id}')")).await;
        browser.until(&format!("{edges} === {left}")).await;
        browser.click(&format!("document.querySelector('#{id}')")).await;
    }
    let choose = |namespace: &str| {
        format!(
            "(() => {{ const e = document.querySelector('#namespace'); e.value = {}; e.dispatchEvent(new Event('input')) }})()",
            json!(namespace)
        )
    };
    browser.eval(&choose("data")).await;
    browser.until(&format!("{edges} === 3")).await;
    browser.click("document.querySelector('#view')").await;
    browser
        .until("document.querySelectorAll('#rows tr').length === 3")
        .await;
    browser.eval(&choose("")).await;
    browser
        .until("document.querySelectorAll('#rows tr').length === 12")
        .await;
    let failing =
        "[...document.querySelectorAll('#rows tr')].find(e => e.querySelector('.failing')).textContent";
    let row = browser.eval(failing).await;
    let row = row.as_str().unwrap();
    assert!(
        row.starts_with("shop/catalogpay/paymentsfailing") && row.ends_with("028080"),
        "{row}"
    );
    browser.picture("shop-table").await;
}

#[tokio::test]
async fn dark_is_what_the_system_prefers_until_somebody_chooses() {
    let mut browser = page(shop).await;
    let brightness =
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)";
    browser.prefer("light").await;
    browser.until(&format!("{brightness} > 600")).await;
    browser.prefer("dark").await;
    browser.until(&format!("{brightness} < 150")).await;
    browser.picture("shop-dark").await;
    browser.click("document.querySelector('#theme')").await;
    browser.until(&format!("{brightness} > 600")).await;
    let url = browser.eval("location.href").await;
    browser.go(url.as_str().unwrap()).await;
    assert_eq!(
        browser.eval("document.documentElement.dataset.theme").await,
        "light",
        "the choice is kept"
    );
    // Text can be read: its contrast is at least that of WCAG's AA.
    let contrast = "(() => { const light = (name) => { const e = document.createElement('i'); e.style.color = `var(${name})`;
        document.body.append(e); const [r, g, b] = getComputedStyle(e).color.match(/[\\d.]+/g).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); e.remove(); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
        const ratio = (one, other) => { const [a, b] = [light(one), light(other)].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05) };
        return ['--text', '--dim', '--mtls', '--direct', '--plaintext', '--failing'].flatMap(one => ['--page', '--panel', '--box']
        .map(other => [`${one} on ${other}`, ratio(one, other)])).filter(one => one[1] < 4.5) })()";
    for theme in ["light", "dark"] {
        browser
            .eval(&format!("document.documentElement.dataset.theme = '{theme}'"))
            .await;
        assert_eq!(browser.eval(contrast).await, json!([]), "{theme}");
    }
}

#[tokio::test]
async fn the_page_is_live_and_says_when_it_is_not() {
    let map = Map::open("127.0.0.1:0".parse().unwrap(), Access::open())
        .await
        .unwrap();
    let address = map.address().unwrap();
    let taker = map.taker();
    let serving = tokio::spawn(map.serve_pages());
    let mut browser = Browser::open(&format!("http://{address}/")).await;
    browser.until("!document.querySelector('#empty').hidden").await;
    assert!(
        browser
            .text("#empty")
            .await
            .contains("No connection has been seen yet")
    );
    taker.take(flow("shop/web", "shop/cart", "open", "tunnel", json!({})));
    browser.until("document.querySelector('.edge.mtls')").await;
    assert_eq!(browser.text("#state").await, "live");
    // Nothing jumps while the same workloads do other things.
    let places = "JSON.stringify([...document.querySelectorAll('.body')].map(e => [e.getAttribute('x'), e.getAttribute('y')]))";
    let before = browser.eval(places).await;
    taker.take(flow("shop/web", "shop/cart", "open", "plaintext", json!({})));
    browser.until("document.querySelector('.edge.plaintext')").await;
    let more = json!({ "verdict": "denied", "reason": "not_allowed" });
    taker.take(flow("shop/web", "shop/cart", "refused", "nowhere", more));
    browser.until("document.querySelector('.edge.failing')").await;
    assert_eq!(browser.eval(places).await, before);
    serving.abort();
    let _ = serving.await;
    browser
        .until("document.querySelector('#state').textContent.startsWith('stale')")
        .await;
    let map = Map::open(address, Access::open()).await.unwrap();
    connect(&map, "shop/web", "shop/again", "tunnel", 1);
    refuse(&map, "shop/web", "shop/again");
    tokio::spawn(map.serve_pages());
    browser
        .until("document.querySelector('#state').textContent === 'live'")
        .await;
    browser
        .until("document.querySelector('[data-edge=\"shop/web shop/again\"]')")
        .await;
}
