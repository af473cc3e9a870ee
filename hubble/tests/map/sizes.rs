//! Few workloads, and many.

use serde_json::json;
use weir_hubble::map::{Access, Map};

use crate::{browser::Browser, flows, served};

/// Nodes, and titles of namespaces, that overlap another, and text that leaves its node.
const OVERLAPS: &str = "(() => {
    const boxes = [...document.querySelectorAll('.node .body, .namespace .title')].map(e => [e, e.getBoundingClientRect()]);
    const bad = [];
    boxes.forEach(([one, a], at) => boxes.slice(at + 1).forEach(([other, b]) => {
        if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
            bad.push(`${one.parentNode.textContent} over ${other.parentNode.textContent}`);
    }));
    for (const node of document.querySelectorAll('.node')) {
        const body = node.querySelector('.body').getBoundingClientRect();
        const texts = [...node.querySelectorAll('text')].filter(e => e.textContent).map(e => e.getBoundingClientRect());
        if (texts.some(t => t.left < body.left || t.right > body.right || t.top < body.top - 1 || t.bottom > body.bottom + 1)
            || (texts.length > 1 && texts[0].bottom > texts[1].top + 4))
            bad.push(`${node.textContent} leaves its node`);
    }
    return bad;
})()";

async fn page(fill: impl FnOnce(&Map)) -> Browser {
    let (address, _) = served(Access::open(), fill).await;
    let mut browser = Browser::open(&format!("http://{address}/")).await;
    browser.until("document.querySelector('.node')").await;
    browser
}

#[tokio::test]
async fn five_workloads_are_all_shown() {
    let long = "a-workload-with-a-name-that-is-as-long-as-kubernetes-lets-it-be";
    let mut browser = page(|map| {
        flows::connect(map, "shop/web", "shop/api", "tunnel", 9);
        flows::connect(map, "shop/api", &format!("data/{long}"), "direct", 5);
        flows::connect(map, "ops/WWWWWWWWWWWWWWWWWWWWWWWWWW", "shop/api", "plaintext", 5);
        flows::refuse(map, "shop/web", &format!("data/{long}"));
        flows::connect(map, "shop/api", "shop/web", "tunnel", 1);
    })
    .await;
    browser
        .until("document.querySelectorAll('.node:not(.folded)').length === 4")
        .await;
    assert_eq!(browser.eval(OVERLAPS).await, json!([]));
    browser.picture("five").await;
}

#[tokio::test]
async fn three_hundred_workloads_are_folded_by_namespace_and_can_be_looked_into() {
    let mut browser = page(|map| flows::many(map, 300)).await;
    assert_eq!(
        browser
            .eval("document.querySelectorAll('.node.folded').length")
            .await,
        12
    );
    assert_eq!(
        browser
            .eval("document.querySelectorAll('.node:not(.folded)').length")
            .await,
        0
    );
    assert_eq!(browser.eval(OVERLAPS).await, json!([]));
    let fits = "document.querySelector('#map').scrollWidth <= innerWidth";
    assert_eq!(browser.eval(fits).await, true, "a page shows all of them");
    browser.picture("many-light").await;
    browser.prefer("dark").await;
    browser.picture("many-dark").await;
    browser.prefer("light").await;
    browser
        .click("document.querySelector('.node[aria-label^=\"billing\"]')")
        .await;
    browser
        .until("document.querySelectorAll('.node:not(.folded)').length === 25")
        .await;
    assert_eq!(browser.eval(OVERLAPS).await, json!([]));
    browser.picture("many-one").await;
    // An edge between folded ones names its pairs, and they lead to flows.
    browser
        .click("document.querySelector('[data-edge=\"ns:cart ns:orders\"]')")
        .await;
    browser
        .until("document.querySelectorAll('#pairs button').length === 25")
        .await;
    browser.click("document.querySelector('#pairs button')").await;
    browser
        .until("document.querySelectorAll('#flows li').length > 3")
        .await;
    browser.press("Escape").await;
    browser.click("document.querySelector('#fold')").await;
    browser
        .until("document.querySelectorAll('.node.folded').length === 12")
        .await;
    browser.click("document.querySelector('#fold')").await;
    browser
        .until("document.querySelectorAll('.node:not(.folded)').length === 300")
        .await;
    assert_eq!(browser.eval(OVERLAPS).await, json!([]));
    browser.picture("many-all").await;
    let took = browser
        .eval(
            "(() => { const before = performance.now(); for (let i = 0; i < 5; i++) dispatchEvent(new Event('resize'));
            return (performance.now() - before) / 5 })()",
        )
        .await;
    // Drawn each second: a tenth of it, on a busy machine, leaves the page usable.
    assert!(took.as_f64().unwrap() < 400.0, "{took} ms to draw");
    assert_eq!(browser.complaints, Vec::<String>::new());
}
